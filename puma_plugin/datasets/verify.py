"""Checks datasets on disk, before a training finds out the hard way."""

import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from puma_plugin.datasets.benchmark import BENCHMARK, benchmark_names
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Location
from puma_plugin.datasets.class_split import shared_classes
from puma_plugin.datasets.distribution_dataset import SmallClasses, Split
from puma_plugin.datasets.errors import DatasetError, DatasetNotFoundError
from puma_plugin.datasets.image_folder import list_folder_split, require_distributions
from puma_plugin.datasets.image_reading import find_defects
from puma_plugin.datasets.image_scan import (
    files_directly_in,
    find_missing,
    is_image_name,
    left_aside,
    scan_images,
    subfolders,
)
from puma_plugin.datasets.listing import Listing, SplitListing
from puma_plugin.datasets.manifest import list_manifest_split, read_manifest
from puma_plugin.datasets.verify_report import BadFile, DatasetReport, SplitCount, VerifyReport
from puma_plugin.utils.arrays import IntArray
from puma_plugin.utils.paths import full_path

Progress = Callable[[str, int, int], None]
_OWN_LAYOUTS = (
    "  lay it out as ROOT/NAME/CLASS/*.jpg, to be split by classes, or as ROOT/NAME/{train,test}/CLASS/*.jpg (query\n"
    "  and gallery may stand for test); a manifest has the columns path, label and, split and distribution if wanted;\n"
    "  paths are relative to its folder or to --image-root, with / between folders"
)
_NOT_COMPARABLE = "figures of a run could not be compared with others'; if they shall be, unpack the archive again"


def verify_datasets(
    root: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    open_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    check_counts: bool = True,
) -> VerifyReport:
    """Look for the benchmark's datasets below ``root`` and compare them with what is published.

    Args:
        root: the folder that holds the datasets' folders, or one such folder.
        names: datasets that must be there. None: look for all eight, whichever are there.
        open_images: decode every image.
        workers: threads that decode.
        progress: called with (dataset, images decoded, images of it).
        check_counts: as in the settings of the training to come. False: for reduced copies, whose class counts are
            noted only, as image counts always are.

    Raises:
        ValueError: an unknown name.
        DatasetError: ``root`` is no folder.
    """
    folder = full_path(root)
    if not os.path.isdir(folder):
        raise DatasetError(f"{folder} is no folder; give the folder that holds the datasets")
    reports = [
        _verify(BENCHMARK[name], folder, open_images, workers, progress, check_counts)
        for name in benchmark_names(names)
    ]
    return VerifyReport(folder, reports, tuple(names or ()))


def verify_own(
    source: str | os.PathLike[str],
    open_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    min_images: int = 2,
    root: str | os.PathLike[str] | None = None,
    small_classes: SmallClasses = "raise",
) -> VerifyReport:
    """Look over distributions of one's own.

    Args:
        source: a folder with one subfolder per distribution (as :class:`ImageFolder` reads it), or a manifest.
        open_images, workers, progress: see :func:`verify_datasets`.
        min_images: images that each class must have, as in the settings of the training to come.
        root: of a manifest, the folder that its paths are relative to; None: the manifest's.
        small_classes: "raise" or "skip", as in the settings of the training to come. With "skip" classes with fewer
            images are noted and not counted.

    Raises:
        DatasetError: ``source`` does not exist or holds no distribution.
        ValueError: ``min_images`` below 1, or a ``root`` without a manifest.
    """
    if min_images < 1:
        raise ValueError(f"min_images must be at least 1, got {min_images}")
    path = full_path(source)
    if root is not None and os.path.isdir(path):
        raise ValueError(f"root is for a manifest's paths, but {path} is a folder; leave root out")
    readers = _own_readers(path, root)
    if not readers:
        raise DatasetError(f"{path} holds no distribution; give a folder of them, one subfolder each, or a manifest")
    if os.path.isdir(path):
        require_distributions(path, list(readers))
    reports = [
        _verify_own(path, name, read, min_images, small_classes, open_images, workers, progress)
        for name, read in readers.items()
    ]
    loose = len(files_directly_in(path)) if os.path.isdir(path) else 0
    return VerifyReport(path, reports, loose=loose)


def _own_readers(path: str, root: str | os.PathLike[str] | None) -> dict[str, Callable[[Split], SplitListing]]:
    if os.path.isfile(path):
        table = read_manifest(path, root)
        return {name: partial(list_manifest_split, table, name) for name in table.distribution_names}
    if not os.path.isdir(path):
        raise DatasetError(f"{path} does not exist; give a folder with one subfolder per distribution, or a manifest")
    return {name: partial(list_folder_split, os.path.join(path, name), title=name) for name in subfolders(path)}


def _verify_own(
    path: str,
    name: str,
    read: Callable[[Split], SplitListing],
    min_images: int,
    small_classes: SmallClasses,
    open_images: bool,
    workers: int | None,
    progress: Progress | None,
) -> DatasetReport:
    folder = path if os.path.isfile(path) else os.path.join(path, name)
    report = DatasetReport(name, name, _OWN_LAYOUTS, True, folder)
    faults: dict[str, list[str]] = {}  # what is wrong -> with which splits
    left_out: dict[str, list[str]] = {}  # which classes -> of which splits
    used: set[str] = set()
    listings: dict[str, Listing] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        try:
            listed = read(split)
            listing = listed.listing
            small = listing.short_classes(min_images)
            if small_classes == "skip" and len(small):
                left_out.setdefault(_small(listing, small, min_images), []).append(split)
                used.update(listing.keys)
                listing = listing.without(small)
            listing = listings[split] = listing if listed.divide is None else listed.divide(listing)
        except DatasetError as error:
            faults.setdefault(str(error).removeprefix(f"{name} ({split}): "), []).append(split)
            continue
        report.splits[split] = SplitCount(len(listing.class_names), len(listing), None, None)
        _require_two_classes(split, listing, report)
        short = listing.short_classes(min_images)
        if len(short):
            report.problems.append(
                f"{split}: {_small(listing, short, min_images)}; add images, leave such classes out "
                "(--data.small_classes skip), or train with --data.min_images "
                f"{int(listing.counts()[short].min())}"
            )
    report.problems += [f"{', '.join(which)}: {fault}" for fault, which in faults.items()]
    report.notes += [f"{', '.join(which)}: left out: {what}" for what, which in left_out.items()]
    if len(listings) == 2:
        shared = shared_classes(listings["train"].class_names, listings["test"].class_names)
        report.notes += [shared] if shared else []
    if os.path.isdir(folder):
        # A split that cannot be read uses files too; which, is not known.
        used.update(key for listing in listings.values() for key in listing.keys)
        report.left_aside = left_aside(folder, None if faults else used)
    _check_files(listings, report, open_images, workers, progress)
    return report


def _require_two_classes(split: str, listing: Listing, report: DatasetReport) -> None:
    if len(listing.class_names) < 2:
        only = f"one class only, {listing.class_names[0]!r}" if len(listing) else "no class is left"
        report.problems.append(f"{split}: {only}; add classes, two are needed")


def _small(listing: Listing, short: IntArray, min_images: int) -> str:
    have = "classes have" if len(short) > 1 else "class has"
    return f"{len(short):,} {have} fewer than {min_images} images, the first is {listing.class_names[short[0]]!r}"


def _verify(
    dataset: type[BenchmarkDataset],
    root: str,
    open_images: bool,
    workers: int | None,
    progress: Progress | None,
    check_counts: bool,
) -> DatasetReport:
    report = DatasetReport(dataset.facts.name, dataset.facts.title, dataset.facts.how_to_get())
    try:
        location = dataset.locate(root)
    except DatasetNotFoundError as error:
        report.hint = error.hint
        return report
    except DatasetError as error:
        report.found = True
        report.problems.append(str(error).splitlines()[0].rstrip(":"))
        return report
    report.found, report.folder, report.layout = True, location.folder, location.layout.name
    listings: dict[str, Listing] = {}
    for split in dataset.own_splits:
        try:
            listings[split] = dataset.list_images(location, split)
        except DatasetError as error:
            report.problems.append(str(error))
            return report
    _compare(dataset, listings, report, check_counts)
    for split in ("train", "test"):
        listing = listings[split] if split in listings else dataset.list_images(location, split)
        _require_two_classes(split, listing, report)
    _find_lone(listings, report)
    _check_files(listings, report, open_images, workers, progress)
    report.surplus = _find_surplus(location, listings)
    return report


def _compare(
    dataset: type[BenchmarkDataset], listings: dict[str, Listing], report: DatasetReport, check_counts: bool
) -> None:
    """A run is stopped by another number of classes, unless that is not looked at; of images it takes what there is."""
    for split, listing in listings.items():
        published = dataset.facts.splits[split]
        report.splits[split] = SplitCount(len(listing.class_names), len(listing), published.classes, published.images)
        classes = len(listing.class_names)
        if classes != published.classes:
            text = f"{split}: {classes:,} classes are listed, {published.classes:,} are published"
            if not published.certain:
                report.notes.append(text)
            elif check_counts:
                advice = "unpack the archive again, or train a reduced copy with --data.check_counts false"
                report.problems.append(f"{text}; {advice}")
            else:
                report.notes.append(f"{text}; {_NOT_COMPARABLE}")
        if published.images is not None and len(listing) != published.images:
            report.notes.append(_other_images(f"{split}: {len(listing):,}", published.images))
    total = sum(map(len, listings.values()))
    # Said once: with a split that differs the sum does too.
    if total != dataset.facts.total and all(published.images is None for published in dataset.facts.splits.values()):
        report.notes.append(_other_images(f"{total:,}", dataset.facts.total, " in all"))


def _other_images(found: str, published: int, where: str = "") -> str:
    return f"{found} images are listed{where}, {published:,} are published; {_NOT_COMPARABLE}"


def _lone(split: str, listing: Listing, lone: IntArray) -> str:
    first = listing.class_names[lone[0]]
    many = f"{len(lone):,} classes have one image, the first is {first!r}"
    return f"{split}: {many if len(lone) > 1 else f'class {first!r} has one image'}"


def _find_lone(listings: dict[str, Listing], report: DatasetReport) -> None:
    for split, listing in listings.items():
        if split in ("query", "gallery"):
            continue
        lone = listing.short_classes(2)
        if len(lone):
            report.notes.append(f"{_lone(split, listing, lone)}; nothing can be retrieved for it")
    if "query" in listings:
        if not len(listings["query"]):
            report.problems.append(
                "query: no image is listed, so nothing would be searched for; unpack the archive again"
            )
        without = sorted(set(listings["query"].class_names) - set(listings["gallery"].class_names))
        if without:
            report.notes.append(f"query: {len(without):,} classes are not in the gallery, the first is {without[0]!r}")
        shared = shared_classes(listings["train"].class_names, listings["query"].class_names)
        report.notes += [shared] if shared else []


def _check_files(
    listings: dict[str, Listing],
    report: DatasetReport,
    open_images: bool,
    workers: int | None,
    progress: Progress | None,
) -> None:
    total = sum(map(len, listings.values()))
    for listing in listings.values():
        missing = find_missing(listing.base, listing.keys)
        report.missing += [_bad(listing, place, "missing") for place in missing]
        if not open_images:
            continue
        present = np.setdiff1d(np.arange(len(listing)), np.array(missing, np.int64))
        before = report.opened

        def count(done: int, before: int = before) -> None:
            if progress is not None:
                progress(report.name, before + done, total)

        paths = listing.keys.take(present).with_prefix(os.path.join(listing.base, ""))
        defects = find_defects(paths, workers, count)
        report.unreadable += [_bad(listing, int(present[place]), reason) for place, reason in defects.items()]
        report.opened += len(present)


def _bad(listing: Listing, place: int, reason: str) -> BadFile:
    key = listing.keys[place]
    return BadFile(key, os.path.join(listing.base, key), reason)


def _find_surplus(location: Location, listings: dict[str, Listing]) -> list[str]:
    def is_image(name: str) -> bool:
        # Files called ._x.jpg, left behind by macOS archives, are hidden but worth mentioning.
        return is_image_name(name.removeprefix("._"))

    known = {os.path.join(listing.base, key) for listing in listings.values() for key in listing.keys}
    folders = [os.path.join(location.folder, images) for images in location.layout.images]
    return [
        os.path.relpath(os.path.join(folder, found), location.folder)
        for folder in folders
        if os.path.isdir(folder)
        for found in scan_images(folder, accept=is_image)
        if os.path.join(folder, found) not in known
    ]
