"""`puma compare`: the rows of a grid, trained and evaluated, and its table, figure and report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from puma_plugin.experiments.comparing.comparison import Comparison
from puma_plugin.experiments.comparing.grid import expand, not_varied, reference_of
from puma_plugin.experiments.comparing.publish import Finished, comparison_metrics, write_metrics
from puma_plugin.experiments.contestants.methods import METHODS
from puma_plugin.experiments.reporting.figures import pareto_chart, write_pareto
from puma_plugin.experiments.reporting.report import ReportPictures, write_report
from puma_plugin.experiments.reporting.tables import explained, markdown_table
from puma_plugin.experiments.reporting.terminal import say
from puma_plugin.experiments.settings.comparison_config import CompareConfig
from puma_plugin.utils import atomic_write


def compare(config: CompareConfig, command: str, console: Console, fresh: bool = False) -> dict[str, Any]:
    """Run what is not finished yet, and write table.md, metrics.json, report.html and pareto.svg into `out`.

    Args:
        command: kept in metrics.json.
        fresh: run everything; what an earlier comparison kept of these rows is removed once the settings are checked.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: a row that a training run would refuse, before any training.
        TaskError: a run failed; finished ones are kept.
    """
    start = time.monotonic()
    methods = expand(config)
    for key, names in not_varied(config).items():
        if names:
            sentence = f"{METHODS[key].label}: not varied, as it changes nothing: {', '.join(names)}"
            say(console, sentence)
    rates = {method.rate_key: config.grid[0] for method in methods}
    outcome = Comparison(config, methods, console).run(
        rates, config.data_seeds, config.seeds, try_rates=len(config.grid) > 1, keep_models=False, fresh=fresh
    )
    finished = Finished(
        config, methods, outcome.jobs, outcome.records, outcome.rates, command, time.monotonic() - start
    )
    metrics = _metrics(finished, reference_of(config))
    _write(metrics, Path(config.out), console)
    return metrics


def _metrics(finished: Finished, reference: str) -> dict[str, Any]:
    common = comparison_metrics(finished, reference)
    names = common["distributions"]
    runs = len(finished.records)
    return {
        "title": f"{len(finished.methods)} rows on {len(names)} distributions",
        "lead": f"{finished.config.train.model.backbone}; {', '.join(names)}; {runs} runs.",
        **common,
        "cards": [],
    }


def _points(rows: Sequence[Mapping[str, Any]], accent: str) -> list[dict[str, Any]]:
    points = []
    for row in rows:
        interval = row["scores"]["harmonic"]
        bounds = {name: None if interval[name] is None else 100 * interval[name] for name in ("mean", "low", "high")}
        costs = {name: row[name] for name in ("label", "trainable", "seconds")}
        points.append({**costs, **bounds, "accent": row["key"] == accent})
    return points


def _table(metrics: Mapping[str, Any]) -> str:
    findings = "".join(f"- {sentence}\n" for sentence in metrics["findings"])
    machine = metrics["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [
        f"# {metrics['title']}",
        "",
        markdown_table(metrics["methods"]),
        "",
        explained(metrics, "After each figure, half the width of the interval"),
        "",
        *([findings] if findings else []),
        f"`{metrics['command']}`, {metrics['date']}, {where}, commit {metrics['commit']}.",
    ]
    return "\n".join(lines) + "\n"


def _write(metrics: Mapping[str, Any], folder: Path, console: Console) -> None:
    write_metrics(metrics, folder, console)
    with atomic_write(folder / "table.md") as temporary:
        temporary.write_text(_table(metrics), encoding="utf-8")
    points = _points(metrics["methods"], metrics["accent"])
    pictures = ReportPictures()
    if any(point["trainable"] for point in points):
        write_pareto(folder / "pareto.svg", points)
        pictures.pareto = pareto_chart(points)
    write_report(folder / "report.html", metrics, pictures)
