"""What a run must have in common with an earlier one that it goes on from, and with other processes of its own."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import puma_plugin
from puma_plugin.experiments.reporting.machine import package_versions
from puma_plugin.experiments.running.processes import Processes
from puma_plugin.experiments.settings.config import CHECKPOINT, SETTINGS, WEIGHTS, TrainConfig
from puma_plugin.experiments.settings.places import absolute_places
from puma_plugin.experiments.settings.results import holds_run, require_no_other_results
from puma_plugin.experiments.settings.unused import WITHOUT_EFFECT
from puma_plugin.utils import json_ready, read_json, require_writable

Resume = Literal["no", "yes", "auto"]

_FREE = WITHOUT_EFFECT | frozenset(
    [
        # These change the rounding only.
        *("device", "threads", "evaluation_batch_size", "max_batch_per_process", "compile"),
        # Frozen weights are compared themselves; of images, wherever they lie now, classes and counts.
        *("data.root", "data.manifest", "data.folders.*", "model.weights"),
        # If the bad images that are now left out were training images, the sampler refuses its state.
        *("data.bad_images", "data.known_bad"),
    ]
)
"""Settings that a resumed run may change."""

_OWN = frozenset(["out", "threads", "evaluation_batch_size", "process_timeout", "data.workers"])
"""Settings that each of several processes may have of its own."""

_LEARNING = ("torch", "torchvision", "timm", "pytorch-metric-learning")
"""Packages that several processes must have in the same version."""


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON types, with absolute paths: what is kept of a run is read from other folders too."""
    return absolute_places(json_ready(asdict(config)))


def can_resume(config: TrainConfig) -> bool:
    """Whether `out` holds what --resume goes on from."""
    folder = Path(config.out)
    if not config.model.trains:
        # Nothing is trained, so there is never a checkpoint; only the evaluation is left to do.
        return (folder / WEIGHTS).exists()
    return any(folder.glob(f"{Path(CHECKPOINT).stem}*"))  # several for separate models


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str], within: str = ""
) -> list[tuple[str, Any, Any]]:
    """The settings that may not differ and do, by dotted name; those in which nothing differs would hide them.

    Args:
        free: those that may; of a part `name.*` its values, but not which there are.
    """
    found = []
    for name in dict.fromkeys((*now, *before)):
        place, old, new = f"{within}{name}", before.get(name), now.get(name)
        moved = f"{within}*" in free and old is not None and new is not None
        if place in free or moved or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, free, f"{place}.")
        else:
            found.append((place, old, new))
    return found


def require_same_settings(config: TrainConfig, processes: Processes, **options: object) -> None:
    """Of several machines, each is given its command by hand.

    Args:
        options: of the command line, next to the settings.

    Raises:
        ValueError: a process has other settings or versions than the first one; says which.
    """
    # As they were given: machines may have their files in folders of their own.
    given = {**json_ready(asdict(config)), **{f"--{name}": options[name] for name in options}}
    if processes.world_size == 1:
        return
    # Other code learns otherwise, and the average of both is nobody's.
    found = package_versions()
    versions = {"sources of puma_plugin": _source_digest(), **{name: found.get(name) for name in _LEARNING}}
    all_settings = processes.gather({**given, "versions": versions})
    for rank, settings in enumerate(all_settings):
        if odd := _differences(all_settings[0], settings, _OWN):
            raise ValueError(
                f"process {rank} was started with other settings or versions than the first one: "
                f"{'; '.join(f'{name} {theirs!r}, not {firsts!r}' for name, firsts, theirs in odd)}; give all the same"
            )


def _source_digest() -> str:
    """Of this package's Python files, by name and content."""
    total = hashlib.sha256()
    folder = Path(puma_plugin.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in place.parts):  # editors leave such
            total.update(f"{place}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()[:12]


def check_resume(config: TrainConfig, folder: Path, resume: bool) -> list[str]:
    """Whether the run may begin, or go on; with sentences about what is elsewhere now.

    Raises:
        ValueError: the folder holds an earlier run, or something else; or there is none to go on from, or it had other
            settings.
    """
    if holds_run(folder) and not resume:
        raise ValueError(f"out is {config.out!r}, which holds an earlier run; give --resume to go on, or another --out")
    if not resume:
        require_no_other_results(folder)
        require_writable(folder, "out", is_folder=True)
        return []
    if not can_resume(config):
        raise ValueError(f"--resume was given, but {folder / CHECKPOINT} does not exist; start without it")
    now = settings_of(config)
    before = read_json(folder / SETTINGS)
    if odd := _differences(before, now, _FREE):
        different = "; ".join(f"{name} was {old!r} and is {new!r}" for name, old, new in odd)
        raise ValueError(
            f"--resume needs the settings that {folder} was started with; different: {different}; give those, or start "
            "without --resume in another --out"
        )
    return [
        f"{name} was {old!r} and is {new!r}: taken to be the same images, of which only the training classes and their "
        "counts are compared"
        for name, old, new in _differences(before, now, ())
        if name in ("data.root", "data.manifest") or name.startswith("data.folders.")
    ]
