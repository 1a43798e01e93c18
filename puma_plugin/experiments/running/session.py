"""One run of `puma train` or `puma evaluate`: from configuration to files."""

import sys
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from puma_plugin.datasets.class_split import shared_classes
from puma_plugin.experiments.contestants.methods import METHODS
from puma_plugin.experiments.data.images import images_of_classes
from puma_plugin.experiments.data.splits import Splits, check_readable, load_splits, load_test
from puma_plugin.experiments.reporting.terminal import say
from puma_plugin.experiments.running.agreement import (
    Resume,
    can_resume,
    check_resume,
    require_same_settings,
    settings_of,
)
from puma_plugin.experiments.running.baseline import read_baseline
from puma_plugin.experiments.running.display import LOADING, JobDisplay
from puma_plugin.experiments.running.early_checks import check_settings
from puma_plugin.experiments.running.pool import Event
from puma_plugin.experiments.running.processes import connected
from puma_plugin.experiments.running.publish import publish, results_folder
from puma_plugin.experiments.running.separate import make_run, small_distributions
from puma_plugin.experiments.running.trained_classes import classes_of, require_unchanged
from puma_plugin.experiments.settings.config import CHECKPOINT, CLASSES, SETTINGS, WEIGHTS, EvaluateConfig, TrainConfig
from puma_plugin.utils import folder_lock, remove_unfinished, require_writable, write_json


def train(config: TrainConfig, resume: Resume, command: str, console: Console) -> dict[str, Any]:
    """Train, evaluate once on the test, and write checkpoint.pt, model.safetensors, metrics.json and report.html.

    Started by torchrun, the processes train together; the first one reads the lists of images, searches and writes.

    Args:
        resume: "yes": go on from `out`/checkpoint.pt; "auto": if there is one, else begin.
        command: kept in metrics.json.

    Returns:
        The content of metrics.json; nothing in processes other than the first.

    Raises:
        ValueError: for settings or folders that cannot be used and test images that cannot be read, before any
            training.
    """
    start = time.monotonic()
    folder = Path(config.out)
    with connected(config.device, config.process_timeout) as processes, ExitStack() as held:
        shown = console if processes.first else Console(quiet=True)
        require_same_settings(config, processes, resume=resume)
        goes_on = processes.from_first(lambda: can_resume(config) if resume == "auto" else resume == "yes")
        moved = processes.from_first(lambda: check_resume(config, folder, goes_on))
        for sentence in moved:
            say(shown, sentence)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        processes.from_first(lambda: check_settings(config, processes))
        splits = processes.from_first(lambda: load_splits(config.data))
        trained = {name: images_of_classes(images) for name, images in splits.train.items()}
        if goes_on:
            # In the first process: the others may not see its folder.
            processes.from_first(lambda: require_unchanged(trained, folder))
        notes = _describe(splits, trained, shown)
        if (
            config.data.validation_fraction
            and config.data.domain != "tuning"
            and (without := [name for name in splits.train if name not in splits.validation])
        ):
            say(
                shown,
                f"no class is held out of {', '.join(without)}: data.validation_fraction "
                f"{config.data.validation_fraction:g} of their training classes leaves less than two of either kind, "
                "or none of two images",
            )
        for sentence in small_distributions(config, splits):
            say(shown, sentence)
        with JobDisplay(shown, {"run": METHODS[config.model.method].label}, "Training") as display:
            display(Event("start", "run"))
            run = make_run(
                config,
                splits,
                checkpoint=folder / CHECKPOINT,
                progress=lambda content: display(Event("progress", "run", content)),
            )
            run.prepare()
            if config.data.bad_images == "raise" and not goes_on:
                processes.from_first(lambda: check_readable(splits, partial(_show_opening, display)))
            processes.from_first(lambda: _take(held, config, folder, goes_on))
            if processes.first:
                write_json(folder / SETTINGS, settings_of(config))
                if config.data.kind != "embedded":  # whose names mean other classes with another seed
                    write_json(folder / CLASSES, trained)
            run.stops_on_signals = True
            run.train()
            if processes.first:
                # Before the test: whatever ends that must not cost the trained weights.
                run.save_model(folder / WEIGHTS)
            display(Event("progress", "run", {"step": run.steps, "steps": run.steps, "stage": "test"}))
            embedded = run.embed(splits.test)
            display(Event("done", "run"))
        return publish(config, run, splits, embedded, notes, command, start, shown)


def _take(held: ExitStack, config: TrainConfig, folder: Path, resume: bool) -> None:
    """The folder is this run's until the end, unless another one has begun there meanwhile."""
    held.enter_context(folder_lock(folder))
    check_resume(config, folder, resume)
    remove_unfinished(folder)


def _show_opening(display: JobDisplay, done: int, images: int) -> None:
    """How far the opening is; LOADING at its end, as the training at first has no words of its own."""
    stage = "opening test images" if done < images else LOADING
    display(Event("progress", "run", {"step": done, "steps": images, "stage": stage}))


def evaluate(
    config: EvaluateConfig, weights: Path, command: str, console: Console, baseline: Path | None = None
) -> dict[str, Any]:
    """Evaluate a trained model on the test of the configured data, and write metrics.json and report.html to `out`.

    Started by torchrun, each process embeds a share of the images.

    Args:
        weights: model.safetensors of a run, or the run's folder.
        baseline: metrics.json of another evaluation, or its folder; the differences are printed and kept.

    Returns:
        The content of metrics.json; nothing in processes other than the first.

    Raises:
        ValueError: if the file does not fit the configured model, or the baseline cannot be compared with.
    """
    start = time.monotonic()
    with connected(config.device, config.process_timeout) as processes:
        shown = console if processes.first else Console(quiet=True)
        require_same_settings(config, processes, baseline=baseline and str(baseline))
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        other = None if baseline is None else processes.from_first(lambda: read_baseline(baseline))
        path = weights / WEIGHTS if weights.is_dir() else weights
        if not processes.require_same_file(path, "--checkpoint"):
            raise ValueError(
                f"--checkpoint is {weights}, but {path} is no file; give the folder of a run that has ended"
            )
        if path.name == CHECKPOINT:
            raise ValueError(f"--checkpoint is {path}, which is what --resume goes on from; give its folder")
        processes.from_first(lambda: require_writable(results_folder(config), "out", is_folder=True))
        processes.from_first(lambda: check_settings(config, processes, trains=False))
        splits = processes.from_first(lambda: load_test(config.data))
        if other is not None and not set(other["per_class"]) & set(splits.names):
            raise ValueError(
                f"--baseline {baseline} has the distributions {list(other['per_class'])}, the configured data has "
                f"{splits.names}: there is nothing to compare; give an evaluation of the same data"
            )
        if other is not None and other["protocol"] != config.protocol:
            raise ValueError(
                f"--baseline {baseline} was counted with protocol {other['protocol']}, this evaluation is to be with "
                f"{config.protocol}: their figures mean different things; give --protocol {other['protocol']}"
            )
        notes = _describe(splits, classes_of(path), shown)
        run = make_run(config, splits)
        run.load_model(path)
        embedded = run.embed(splits.test, progress=sys.stderr.isatty())
        return publish(config, run, splits, embedded, notes, command, start, shown, baseline, other)


def _describe(splits: Splits, trained: Mapping[str, Collection[str]], console: Console) -> list[str]:
    """Print what there is. Returned are the sentences that the figures have to be read with."""
    for name, sizes in splits.describe().items():
        parts = ", ".join(f"{part} {size['classes']} classes {size['images']} images" for part, size in sizes.items())
        say(console, f"{name}: {parts}")
    shared = {name: shared_classes(trained.get(name, ()), test.class_names) for name, test in splits.test.items()}
    notes = [f"{name}: {sentence}" for name, sentence in shared.items() if sentence]
    sentences = list(notes)
    for name, reasons in splits.skipped.items():
        key, reason = next(iter(reasons.items()))
        sentences.append(
            f"{name}: images left out: {len(reasons):,}, the first is {key} ({reason}); all are in metrics.json"
        )
    for sentence in sentences:
        say(console, sentence)
    return notes
