"""Where a dataset that was not found may be: a folder off, under another name, or not unpacked yet."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_scan import subfolders

if TYPE_CHECKING:
    from puma_plugin.datasets.benchmark_dataset import Layout

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
# Folders looked into below a root that holds none of the dataset's own, so that a wrong root costs no minute.
_MOST = 200


def whereabouts(root: str, layouts: Sequence["Layout"], source: str, foreign: Callable[[str, "Layout"], bool]) -> str:
    """What to do about a dataset that ``root`` does not hold where it should; empty if nothing is known.

    Args:
        root: where it was looked for.
        layouts: the dataset's.
        source: names its archives.
        foreign: whether a folder is another dataset's, whose lists are called as those of the layout.
    """
    above = os.path.dirname(root), os.path.dirname(os.path.dirname(root))
    for folder in chain(above, _below(root)):
        # A single folder such as "Images" may be anything.
        fitting = [layout for layout in layouts if len(layout.required) > 1 and not layout.absent(folder)]
        if not fitting or foreign(folder, fitting[0]):
            continue
        layout = fitting[0]
        called = any(folder.endswith(os.sep + name) for name in layout.folders)
        if folder in above:
            if called:
                return f"{root} is a part of it; give {os.path.dirname(folder)}, the folder that holds the datasets"
            continue
        place = os.path.join(root, _name(folder) if called else layout.folders[0])
        if folder.startswith(place + os.sep):  # its archive was unpacked into a folder of that name
            return f"it seems to be in {folder}; move what is in there up into {place}"
        replacing = f", in place of the {_name(place)} there" if os.path.lexists(place) else ""
        if called:
            return f"it seems to be in {folder}; give {os.path.dirname(folder)}, or move it to {root}{replacing}"
        return f"it seems to be in {folder}; move it to {place}{replacing}"
    named = [os.path.join(root, name) for layout in layouts for name in layout.folders]
    packed = [path for place in dict.fromkeys([root, *named]) for path in _archives(place) if _name(path) in source]
    return f"not unpacked yet: {', '.join(packed)}" if packed else ""


def _name(path: str) -> str:
    return os.path.basename(path)


def _below(root: str) -> Iterator[str]:
    """The folders in ``root``, then those in them."""
    found = [os.path.join(root, name) for name in _subfolders(root)[:_MOST]]
    yield from found
    for folder in found:
        for name in _subfolders(folder)[:_MOST]:
            yield os.path.join(folder, name)


def _archives(place: str) -> Iterator[str]:
    """Archives in the folder and in its folders."""
    for folder in (place, *(os.path.join(place, name) for name in _subfolders(place)[:_MOST])):
        with suppress(OSError):
            yield from (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(_ARCHIVES))


def _subfolders(folder: str) -> list[str]:
    try:
        return subfolders(folder)
    except (OSError, DatasetError):  # not there, or not for us
        return []
