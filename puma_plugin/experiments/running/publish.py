"""metrics.json and report.html of one run of `puma train` or `puma evaluate`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from puma_plugin.evaluation import Embedded, RetrievalResult, compare_results
from puma_plugin.evaluation.result import short_name
from puma_plugin.experiments.contestants.methods import METHODS
from puma_plugin.experiments.data.splits import Splits
from puma_plugin.experiments.reporting.metrics import common_metrics
from puma_plugin.experiments.reporting.terminal import say
from puma_plugin.experiments.running.agreement import settings_of
from puma_plugin.experiments.running.record import run_record
from puma_plugin.experiments.running.separate import AnyRun
from puma_plugin.experiments.settings.config import SETTINGS, WEIGHTS, EvaluateConfig, TrainConfig
from puma_plugin.experiments.settings.results import METRICS
from puma_plugin.utils import write_json

_PAPER_CODE = (
    "Counted as the authors' published code does (protocol paper-code): classes of different distributions may share "
    "a number and then count as hits, R includes the query, and queries without a positive are misses."
)


def results_folder(config: TrainConfig) -> Path:
    """Where metrics.json and report.html go: `out`; for an evaluation below it, if `out` is the folder of a training.

    An evaluation with the configuration of its training would otherwise replace what the training wrote there.
    """
    out = Path(config.out)
    trained = any((out / name).exists() for name in (WEIGHTS, SETTINGS))
    return out / "evaluation" if isinstance(config, EvaluateConfig) and trained else out


def publish(
    config: TrainConfig,
    run: AnyRun,
    splits: Splits,
    embedded: Embedded,
    notes: list[str],
    command: str,
    start: float,
    console: Console,
    baseline: Path | None = None,
    other: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Search, and write what was found; in the first process only.

    Args:
        embedded: the test, by this run.
        notes: sentences that the figures have to be read with.
        command: kept in metrics.json.
        start: when the command was started, as `time.monotonic()` says it.
        baseline, other: another evaluation's place and result, to compare with.

    Returns:
        The content of metrics.json; nothing in processes other than the first.
    """
    prompt_weights = run.prompt_weights(splits.test) if config.report else None
    if not run.processes.first:
        return {}
    folder = results_folder(config)
    # A training ends with the honest figures; to count otherwise is for an evaluation.
    result = embedded.evaluate(*((tuple(config.ks), config.protocol) if isinstance(config, EvaluateConfig) else ()))
    metrics = _metrics(config, run, splits, result, notes, command, time.monotonic() - start)
    comparison = None if other is None else compare_results(metrics["runs"][0]["result"], other)
    if comparison is not None:
        metrics["baseline"] = {"path": str(baseline), **comparison.to_dict()}
    write_json(folder / METRICS, metrics)
    _show(console, config, result)
    if comparison is not None:
        say(console, comparison.text())
    if config.report:
        from puma_plugin.experiments.reporting.report import ReportPictures, write_report
        from puma_plugin.experiments.reporting.visuals import embedding_maps, members_of, query_rows

        labelled = {METHODS[config.model.method].label: embedded.embeddings.numpy()}
        pictures = ReportPictures(
            maps=embedding_maps(labelled, members_of(splits.test), 1600),
            prompt_weights=prompt_weights,
            queries=query_rows(labelled, splits.test, 3, 8),
        )
        write_report(folder / "report.html", metrics, pictures)
    say(console, f"results in {folder}")
    return metrics


def _show(console: Console, config: TrainConfig, result: RetrievalResult) -> None:
    # Embeddings of different models cannot be compared.
    lines = result.table(*result.unified, joint=not config.model.is_separate).splitlines()
    for name, metrics in result.per_distribution.items():
        further = [
            f"{short_name(key)} {100 * value:.2f}" for key, value in metrics.items() if key not in result.unified
        ]
        lines += [f"{name}: {', '.join(further)}"] if further else []
    say(console, "\n".join(lines))


def _metrics(
    config: TrainConfig,
    run: AnyRun,
    splits: Splits,
    result: RetrievalResult,
    notes: list[str],
    command: str,
    seconds: float,
) -> dict[str, Any]:
    method = METHODS[config.model.method]
    record = {"method": method.key, "data_seed": config.data.seed, "seed": config.seed, **run_record(run, result)}
    common = common_metrics(
        [record],
        [method],
        method.key,
        command=command,
        seconds=seconds,
        settings=settings_of(config),
        facts={"Seed": config.seed, "Protocol": result.protocol},
        curve_note="Harmonic mean of R@1 on training classes that were held out of training.",
        remarks=[_PAPER_CODE] if result.protocol == "paper-code" else [],
    )
    data = splits.describe()
    classes = sum(part["test"]["classes"] for part in data.values())
    return {
        "title": f"{method.label} on {len(splits.names)} distributions",
        "lead": f"Backbone {config.model.backbone}; {classes} test classes of {', '.join(splits.names)}.",
        **common,
        "findings": notes,
        "data": data,
        "skipped": splits.skipped,
        "processes": run.processes.world_size,
        "cards": [],
    }
