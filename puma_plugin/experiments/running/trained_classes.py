"""The classes that a run was trained on, kept beside its weights: what an evaluation and a resumed run look at."""

from collections.abc import Mapping
from pathlib import Path

from puma_plugin.experiments.settings.config import CLASSES, WEIGHTS
from puma_plugin.utils import read_json


def require_unchanged(now: Mapping[str, Mapping[str, int]], folder: Path) -> None:
    """ValueError naming what differs in the training images of a run that is to go on."""
    before = classes_of(folder / WEIGHTS)
    for name in {**before, **now} if before else ():
        counts, found = before.get(name, {}), now.get(name, {})
        differ = [label for label in {**counts, **found} if counts.get(label, 0) != found.get(label, 0)]
        if differ:
            first, many = differ[0], "classes differ" if len(differ) > 1 else "class differs"
            raise ValueError(
                f"{name}: the training images are not those that {folder} began with: class {first!r} had "
                f"{counts.get(first, 0)} and has {found.get(first, 0)} ({len(differ):,} {many}); make them the same "
                "again, or start without --resume in another --out"
            )


def classes_of(weights: Path) -> dict[str, dict[str, int]]:
    """The classes that a run was trained on with their images, by distribution; empty where its folder does not say."""
    file = weights.parent / CLASSES
    return read_json(file) if file.is_file() else {}
