"""Whose results a folder holds, so that no command replaces those of another."""

from pathlib import Path

from puma_plugin.experiments.settings.config import CHECKPOINT, SETTINGS, WEIGHTS

JOBS = "jobs"
"""Folder of what a comparison has finished, below its `out`."""

METRICS = "metrics.json"


def holds_run(folder: Path) -> bool:
    """Whether a training has begun there."""
    return any(folder.glob(f"{Path(CHECKPOINT).stem}*")) or (folder / WEIGHTS).exists()


def require_no_other_results(folder: Path) -> None:
    """For a training that begins.

    Raises:
        ValueError: a comparison or an evaluation has its results there.
    """
    compared = any((folder / JOBS).glob("*.json"))
    if compared or (folder / METRICS).exists():
        what = "a comparison" if compared else "an evaluation or a comparison"
        raise ValueError(f"out is {str(folder)!r}, which holds the results of {what}; give another --out")


def require_no_run(folder: Path) -> None:
    """For a comparison.

    Raises:
        ValueError: the folder is that of a training.
    """
    if holds_run(folder) or (folder / SETTINGS).exists():
        raise ValueError(f"out is {str(folder)!r}, which holds a run of `puma train`; give another --out")
