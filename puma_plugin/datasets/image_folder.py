"""A distribution of one's own: one folder per class."""

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from puma_plugin.datasets.class_split import split_by_class
from puma_plugin.datasets.distribution_dataset import (
    SPLITS,
    BadImages,
    DistributionDataset,
    SmallClasses,
    Split,
    check_split,
)
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_scan import EXTENSIONS, lost_link, scan_images, subfolders
from puma_plugin.datasets.listing import Listing, SplitListing, join, merge_query_gallery
from puma_plugin.datasets.string_table import StringTable
from puma_plugin.utils.paths import full_path

# As people call the folders of splits. There may well be a single distribution of galleries.
_SURELY = frozenset(("train", "training", "test", "testing"))
_ALIKE = _SURELY | {"val", "valid", "validation", "query", "gallery"}


class ImageFolder(DistributionDataset):
    """Images sorted into one folder per class.

    Args:
        root: a folder with one subfolder per class (images anywhere below it), which is split by classes; or one with
            ``train`` and ``test`` folders of such subfolders; or with ``query`` and ``gallery`` folders in place of
            ``test``. Hidden files and folders do not count, nor do __MACOSX and @eaDir. Beside such folders no other
            (``val``) may hold images.
        split: "train", "test", "query" or "gallery". The last two equal "test" where there are no such folders.
        transform, bad_images, known_bad: see :class:`DistributionDataset`.
        name: the distribution's name; None: the name of the folder.
        test_fraction: share of the classes that test, where the folder is split by classes: the last in sorted order.
        min_images: images that each class must have (of query and gallery together; classes of the gallery alone may
            have any number).
        small_classes: "raise" or "skip", what becomes of classes with fewer; they are left out before the others are
            split.

    Raises:
        DatasetError: no such folder, no class folders, a class without images or with fewer than ``min_images``, a
            query class that is not in the gallery, a missing split, images in a folder beside those of the splits, a
            link to a folder that does not exist.

    Listing a million files takes seconds and about 50 MB.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Split = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        bad_images: BadImages = "raise",
        known_bad: Collection[str] | str | os.PathLike[str] | None = None,
        name: str | None = None,
        test_fraction: float = 0.5,
        min_images: int = 2,
        small_classes: SmallClasses = "raise",
    ) -> None:
        check_split(split)
        folder = full_path(root)
        title = os.path.basename(folder) if name is None else name
        listed = list_folder_split(folder, split, title, test_fraction)
        least = 1 if listed.one_part else min_images
        super().__init__(
            listed.listing, title, split, transform, bad_images, known_bad, least, small_classes, listed.divide
        )


def list_image_folder(folder: str | os.PathLike[str], dataset: str, base: str | None = None) -> Listing:
    """All images of a folder with one subfolder per class; classes and files in sorted order.

    Args:
        dataset: how error messages call the dataset.
        base: folder above ``folder`` that the keys shall be relative to; None: ``folder``.

    Raises:
        DatasetError: no such folder, no subfolders, a class without images, or a link to a folder that does not exist.
    """
    root = full_path(folder)
    if not os.path.isdir(root):
        fault = lost_link(root) or f"{root} is no folder; give one that holds a subfolder per class"
        raise DatasetError(f"{dataset}: {fault}")
    above = root if base is None else base
    prefix = "" if above == root else os.path.relpath(root, above).replace(os.sep, "/") + "/"
    classes = subfolders(root)
    if not classes:
        raise DatasetError(f"{dataset}: {root} holds no subfolders; put each class into a subfolder of its own")
    keys: list[str] = []
    counts = []
    links: list[str] = []
    for name in classes:
        before = len(keys)
        keys.extend(scan_images(os.path.join(root, name), f"{prefix}{name}/", links=links, strict=True))
        counts.append(len(keys) - before)
        if counts[-1] == 0:
            raise DatasetError(
                f"{dataset}: class folder {os.path.join(root, name)} holds no image "
                f"({', '.join(sorted(EXTENSIONS))}); add some, or remove the folder"
            )
    return Listing(above, StringTable(keys), np.repeat(np.arange(len(classes)), counts), classes, scanned=not links)


def require_distributions(root: str, names: Sequence[str]) -> None:
    """Look whether a folder of distributions was not taken for one of its distributions.

    Raises:
        DatasetError: its folders are called as splits, or none of them holds a folder.
    """
    if splits := _like_splits(names):
        raise DatasetError(
            f"{root} holds {' and '.join(map(repr, splits))}, so it looks like a single distribution with its splits, "
            f"not a folder of distributions; train on it by a name of its own (--data.folders.NAME {root}), move such "
            "folders into that of their distribution (NAME/train/CLASS), or choose others (--data.names)"
        )
    folders = [os.path.join(root, name) for name in names]
    # What a link that leads nowhere holds is not known; whoever reads it is told.
    if not any(lost_link(folder) or subfolders(folder) for folder in folders):
        raise DatasetError(
            f"{root} holds no folder with class folders in it, so it looks like a single distribution, whose folders "
            f"are its classes; give the folder above, {os.path.dirname(root)}"
        )


def _like_splits(names: Sequence[str]) -> list[str]:
    """Those names that would be taken for splits by a reader, if there are enough to be sure."""
    alike = [name for name in names if name.lower() in _ALIKE]
    return alike if len(alike) > 1 or any(name.lower() in _SURELY for name in alike) else []


def has_split_folders(folder: str) -> bool:
    """Whether the folder holds splits (train or test, or both query and gallery) and not classes to be split."""
    present = _split_folders(folder)
    return bool(present & {"train", "test"}) or {"query", "gallery"} <= present


def _split_folders(folder: str) -> set[str]:
    """The splits that have a folder here, or a link to one that does not exist, which whoever reads it is told."""
    places = {part: os.path.join(folder, part) for part in SPLITS}
    return {part for part, place in places.items() if os.path.isdir(place) or lost_link(place)}


def list_folder_split(folder: str, split: Split, title: str, test_fraction: float = 0.5) -> SplitListing:
    """The images of a split by the rules of :class:`ImageFolder`, without looking at the number per class.

    Raises:
        DatasetError: folders that these rules do not cover, or no images of the split.
    """
    dataset = f"{title} ({split})"
    present = _split_folders(folder)
    if not has_split_folders(folder):
        _refuse_other_spelling(folder, dataset)
        divide = partial(split_by_class, test_fraction=test_fraction, train=split == "train", dataset=dataset)
        return SplitListing(list_image_folder(folder, dataset), divide)
    _require_only_splits(folder, present, dataset)

    def part(name: str) -> Listing:
        return list_image_folder(os.path.join(folder, name), dataset, base=folder)

    if split in present:
        return SplitListing(part(split), one_part=split in ("query", "gallery"))
    if split == "test" and {"query", "gallery"} <= present:
        query, gallery = part("query"), part("gallery")
        lone = sorted(set(query.class_names) - set(gallery.class_names))
        if lone:
            raise DatasetError(
                f"{dataset}: query class {lone[0]!r} is not in {os.path.join(folder, 'gallery')} ({len(lone):,} such "
                "classes), so its queries can find nothing; add images of it to the gallery, or remove it from query"
            )
        return SplitListing(merge_query_gallery(query, gallery))
    if split in ("query", "gallery") and "test" in present:
        return SplitListing(part("test"))
    raise DatasetError(
        f"{dataset}: {folder} holds {', '.join(sorted(present))} but nothing to make {split!r} of; add a folder "
        f"called {split}, or put the classes directly into the folder to have them split"
    )


def list_whole_folder(folder: str | os.PathLike[str], dataset: str) -> Listing:
    """All images of a distribution, whatever their split: of folders of splits the classes in them, joined by name.

    Beside other folders with images those called as splits are classes too.
    """
    root = full_path(folder)
    if not has_split_folders(root) or _beside_splits(root):
        _refuse_other_spelling(root, dataset)
        return list_image_folder(root, dataset)
    present = _split_folders(root)
    parts = [part for part in SPLITS if part in present]
    return join([list_image_folder(os.path.join(root, part), dataset, base=root) for part in parts])


def _refuse_other_spelling(folder: str, dataset: str) -> None:
    """Folders that are nothing but splits in another spelling would become classes.

    Raises:
        DatasetError: all are called so (a class of trains may be called Train).
    """
    names = subfolders(folder) if os.path.isdir(folder) else []
    if names and _like_splits(names) == names and not set(names) <= set(SPLITS):
        raise DatasetError(
            f"{dataset}: {folder} holds {', '.join(map(repr, names))}, which look like splits but would become "
            f"classes; call them {', '.join(SPLITS)} (or, if these are classes, add another one or rename them)"
        )


def _beside_splits(folder: str) -> list[str]:
    """Folders with images that are called otherwise than splits."""
    others = [name for name in subfolders(folder) if name not in SPLITS]
    return [name for name in others if any(True for _ in scan_images(os.path.join(folder, name)))]


def _require_only_splits(folder: str, present: set[str], dataset: str) -> None:
    """No images beside the splits' folders: they would be left out without a word. Notes or annotations may lie there.

    Raises:
        DatasetError: naming the folders with such images.
    """
    unused = _beside_splits(folder)
    if unused:
        what, them = ("folder", "it") if len(unused) == 1 else ("folders", "them")
        more = ", ..." if len(unused) > 10 else ""
        raise DatasetError(
            f"{dataset}: {folder} has the {what} {', '.join(map(repr, unused[:10]))}{more} beside "
            f"{', '.join(part for part in SPLITS if part in present)}, whose images would not be used; give one of "
            f"{', '.join(SPLITS)}: merge {them} into one of these, or move {them} out of {folder} (if these are "
            "all classes, train with --data.split classes)"
        )
