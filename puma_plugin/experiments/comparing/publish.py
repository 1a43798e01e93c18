"""metrics.json, report.html and the trained weights of a comparison."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from puma_plugin.experiments.comparing.comparison import checkpoint_files
from puma_plugin.experiments.comparing.jobs import Job
from puma_plugin.experiments.comparing.recorded import load_recorded
from puma_plugin.experiments.contestants.methods import METHODS, Method
from puma_plugin.experiments.data.splits import load_splits
from puma_plugin.experiments.reporting.intervals import INTERVAL_METHODS
from puma_plugin.experiments.reporting.machine import provenance
from puma_plugin.experiments.reporting.report import ReportPictures, write_report
from puma_plugin.experiments.reporting.summary import (
    EXPLANATION,
    Unit,
    bootstrapped,
    collapses,
    curves,
    differences,
    findings,
    method_rows,
)
from puma_plugin.experiments.reporting.tables import percent
from puma_plugin.experiments.reporting.terminal import say
from puma_plugin.experiments.reporting.visuals import embedding_maps, members_of, query_rows
from puma_plugin.experiments.settings.comparison_config import ComparisonConfig, DemoConfig
from puma_plugin.experiments.settings.results import JOBS, METRICS
from puma_plugin.utils import atomic_write, json_ready, write_json

SHOWN = ("frozen", "puma")
"""The methods whose embeddings the report shows."""

_LEAD = (
    "One embedding for glyphs, fractals, contours, textures, solids, flags, photos and digits. Test classes were never "
    "seen in training, and glyph holds 70 % of the training classes."
)
_CURVE_NOTE = (
    "Harmonic mean over the distributions of R@1 on training classes that were held out of training; a mean over the "
    "runs with their range. The loss is no progress figure here: CurricularFace's rises as its own difficulty does."
)


@dataclass(frozen=True)
class Finished:
    """What a comparison has produced: its test jobs and their records, the grid (if it ran), seconds in all."""

    config: ComparisonConfig
    methods: Sequence[Method]
    jobs: Sequence[Job]
    records: Sequence[Mapping[str, Any]]
    rates: Mapping[str, Any] | None
    command: str
    seconds: float


def common_metrics(finished: Finished, reference: str, unit: Unit) -> dict[str, Any]:
    """What the metrics.json of every comparison holds.

    Args:
        reference: key of the method that the others are compared with.
        unit: what the intervals count as independent.
    """
    records, methods = finished.records, finished.methods
    rows = method_rows(records, methods, unit)
    gaps = differences(records, methods, reference, unit)
    origin = provenance()
    left_out = ["settings", "intervals"]
    method = INTERVAL_METHODS[unit]
    note = "Points: means. Bars: 95 % intervals."
    if all(row["scores"]["harmonic"]["low"] is None for row in rows):
        # One run each: what the figures owe to the choice of test classes can still be told.
        bounds = {record["method"]: record["intervals"] for record in records}
        rows = [bootstrapped(row, bounds[row["key"]]) for row in rows]
        left_out.remove("intervals")
        method = INTERVAL_METHODS["class"]
        note = "One run per method. Bars: 95 % bootstrap intervals over the classes."
    return {
        "schema": 1,
        "command": finished.command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "seconds": round(finished.seconds, 1),
        **origin,
        "settings": json_ready(asdict(finished.config)),
        "learning_rates": finished.rates,
        "distributions": list(rows[0]["per_distribution"]),
        "accent": reference,
        "methods": rows,
        "differences": gaps,
        "interval_method": method,
        "findings": [*findings(rows, gaps, methods, reference), *collapses(records, methods)],
        "curves": curves(records, methods),
        "interval_note": note,
        "curve_note": _CURVE_NOTE,
        "explanation": f"{EXPLANATION} Below each figure: {method}",
        "facts": _facts(finished, origin),
        "runs": [
            {"file": f"{JOBS}/{job.path().name}", **{key: record[key] for key in record if key not in left_out}}
            for job, record in zip(finished.jobs, records, strict=True)
        ],
    }


def write_metrics(metrics: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Write metrics.json, and say so if the one that it replaces has runs of other settings or methods."""
    own = {run["file"] for run in metrics["runs"]}
    if any(name not in own and (folder / name).exists() for name in _files_in(folder / METRICS)):
        sentence = f"the table of {folder} was of other settings or methods; their kept runs stay in {folder / JOBS}"
        say(console, sentence)
    write_json(folder / METRICS, metrics)


def _files_in(metrics: Path) -> list[str]:
    """The files of the runs in a comparison's metrics.json; none if it is not there, or of something else."""
    try:
        return [run["file"] for run in json.loads(metrics.read_text(encoding="utf-8"))["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def build_metrics(finished: Finished) -> dict[str, Any]:
    """The content of the demo's metrics.json."""
    metrics = common_metrics(finished, "puma", "data_seed")
    rows = metrics["methods"]
    metrics["explanation"] += " Every run trains on one core."
    if finished.rates is None:
        recorded = load_recorded()
        own = {row["key"] for row in rows}
        rows += [{**row, "recorded": True} for row in recorded["methods"] if row["key"] not in own]
        metrics["explanation"] += (
            f" Rows marked as recorded are not from this run: {recorded['description']}, on "
            f"{recorded['machine']['cpu']} with torch {recorded['versions']['torch']}, {recorded['date']}."
        )
        metrics["explanation"] += f" Below their figures: {recorded['interval_method']}"
    return {"title": "PUMA on eight image distributions", "lead": _LEAD, **metrics, "cards": _cards(rows)}


def _cards(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    by_key = {row["key"]: row for row in rows}
    if "puma" not in by_key:
        return []
    own = by_key["puma"]

    def card(figure: str, text: str, score: str) -> dict[str, str]:
        frozen = by_key.get("frozen")
        beside = f"; frozen features {percent(frozen['scores'][score]['mean'])}" if frozen else ""
        return {"figure": f"{figure} %", "text": f"{text}{beside}"}

    scores = own["scores"]
    cards = [
        card(percent(scores["harmonic"]["mean"]), "harmonic mean of R@1", "harmonic"),
        card(percent(scores["unified"]["mean"]), "unified R@1 in the joint gallery", "unified"),
        card(percent(scores["worst"]["mean"]), "R@1 of the worst distribution", "worst"),
    ]
    full = by_key.get("full")
    share = f": {100 * own['trainable'] / full['trainable']:.1f} % of full fine-tuning's" if full else ""
    return [*cards, {"figure": f"{own['trainable'] / 1000:.0f} k", "text": f"trainable weights{share}"}]


def _facts(finished: Finished, origin: Mapping[str, Any]) -> dict[str, Any]:
    machine = origin["machine"]
    seeds = sorted({record["seed"] for record in finished.records})
    return {
        "Command": finished.command,
        "Machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "Versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        "Commit": origin["commit"],
        "Data seeds": ", ".join(map(str, sorted({record["data_seed"] for record in finished.records}))),
        "Training seeds": ", ".join(map(str, seeds)),
        "Seconds of the last start": f"{finished.seconds:.0f}",  # it may have found finished runs
    }


def _load(jobs: Sequence[Job]) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for job in jobs:
        if job.keep_model and job.method.key in SHOWN:
            with np.load(job.path(".npz")) as arrays:
                found[job.method.key] = {name: arrays[name] for name in arrays.files}
    return {method: found[method] for method in SHOWN if method in found}


def publish(finished: Finished, console: Console) -> tuple[Path, dict[str, Any]]:
    """Write metrics.json, report.html and the trained weights into the output folder.

    Returns:
        The report's path, and the content of metrics.json.
    """
    config = finished.config
    assert isinstance(config, DemoConfig)
    folder = Path(config.out)
    metrics = build_metrics(finished)
    arrays = _load(finished.jobs)
    embeddings = {METHODS[method].label: values["embeddings"] for method, values in arrays.items()}
    pictures = ReportPictures()
    if embeddings:
        shown = next(job for job in finished.jobs if job.keep_model)
        test = load_splits(shown.config.data).test
        pictures.maps = embedding_maps(embeddings, members_of(test), config.map_images)
        pictures.queries = query_rows(embeddings, test, config.queries, config.neighbours)
        pictures.prompt_weights = arrays.get("puma", {}).get("prompt_weights")
    write_metrics(metrics, folder, console)
    for method, source in checkpoint_files(finished.jobs).items():
        with atomic_write(folder / "models" / f"{method}.safetensors") as temporary:
            shutil.copyfile(source, temporary)
    write_report(folder / "report.html", metrics, pictures)
    return folder / "report.html", metrics
