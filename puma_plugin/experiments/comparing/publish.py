"""metrics.json, report.html and the trained weights of a comparison."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from puma_plugin.experiments.comparing.comparison import checkpoint_files
from puma_plugin.experiments.comparing.jobs import Job
from puma_plugin.experiments.comparing.recorded import load_recorded
from puma_plugin.experiments.contestants.methods import METHODS, Method
from puma_plugin.experiments.data.splits import load_splits
from puma_plugin.experiments.reporting.metrics import common_metrics
from puma_plugin.experiments.reporting.report import ReportPictures, write_report
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


def comparison_metrics(finished: Finished, reference: str) -> dict[str, Any]:
    """What the metrics.json of every comparison holds.

    Args:
        reference: key of the method that the others are compared with.
    """
    files = [f"{JOBS}/{job.path().name}" for job in finished.jobs]
    seeds = {name: sorted({record[name] for record in finished.records}) for name in ("data_seed", "seed")}
    return common_metrics(
        [{"file": file, **record} for file, record in zip(files, finished.records, strict=True)],
        finished.methods,
        reference,
        command=finished.command,
        seconds=finished.seconds,
        settings=json_ready(asdict(finished.config)),
        facts={
            "Data seeds": ", ".join(map(str, seeds["data_seed"])),
            "Training seeds": ", ".join(map(str, seeds["seed"])),
        },
        curve_note=_CURVE_NOTE,
        learning_rates=finished.rates,
    )


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
    metrics = comparison_metrics(finished, "puma")
    rows = metrics["methods"]
    metrics["remarks"].append("Every run trains on one core.")
    if finished.rates is None:
        recorded = load_recorded()
        own = {row["key"] for row in rows}
        rows += [{**row, "recorded": True} for row in recorded["methods"] if row["key"] not in own]
        metrics["remarks"] += [
            f"Rows marked as recorded are not from this run: {recorded['description']}, on "
            f"{recorded['machine']['cpu']} with torch {recorded['versions']['torch']}, {recorded['date']}.",
            f"Below their figures: {recorded['interval_method']}",
        ]
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
