"""Checks datasets on disk, before a training finds out the hard way."""

import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from puma_plugin.datasets.benchmark import BENCHMARK, benchmark_names
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Location
from puma_plugin.datasets.distribution_dataset import Split
from puma_plugin.datasets.errors import DatasetError, DatasetNotFoundError
from puma_plugin.datasets.image_files import find_defects, find_missing, is_image_name, scan_images, subfolders
from puma_plugin.datasets.image_folder import list_folder_split
from puma_plugin.datasets.listing import Listing
from puma_plugin.datasets.manifest import Manifest, list_manifest_split, read_manifest
from puma_plugin.datasets.verify_report import BadFile, DatasetReport, SplitCount, VerifyReport

Progress = Callable[[str, int, int], None]


def verify_datasets(
    root: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    open_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Look for the benchmark's datasets below ``root`` and compare them with what is published.

    Args:
        root: the folder that holds the datasets' folders, or one such folder.
        names: datasets that must be there. None: look for all eight, whichever are there.
        open_images: decode every image.
        workers: threads that decode.
        progress: called with (dataset, images decoded, images of it).

    Raises:
        ValueError: an unknown name.
        DatasetError: ``root`` is no folder.
    """
    folder = os.path.abspath(os.path.expanduser(os.fspath(root)))
    if not os.path.isdir(folder):
        raise DatasetError(f"{folder} is no folder; give the folder that holds the datasets")
    reports = [_verify(BENCHMARK[name], folder, open_images, workers, progress) for name in benchmark_names(names)]
    return VerifyReport(folder, reports, tuple(names or ()))


def verify_own(
    source: str | os.PathLike[str],
    open_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Look over distributions of one's own.

    Args:
        source: a folder with one subfolder per distribution (as :class:`ImageFolder` reads it), or a manifest.
        open_images, workers, progress: see :func:`verify_datasets`.

    Raises:
        DatasetError: ``source`` does not exist or holds no distribution.
    """
    path = os.path.abspath(os.path.expanduser(os.fspath(source)))
    readers = _own_readers(path)
    if not readers:
        raise DatasetError(f"{path} holds no distribution; give a folder of them, one subfolder each, or a manifest")
    reports = [_verify_own(path, name, read, open_images, workers, progress) for name, read in readers.items()]
    return VerifyReport(path, reports)


def _own_readers(path: str) -> dict[str, Callable[[Split], Listing]]:
    if os.path.isfile(path):
        table = read_manifest(path)
        return {name: partial(_read_manifest_part, table, name) for name in table.distribution_names}
    if not os.path.isdir(path):
        raise DatasetError(f"{path} does not exist; give a folder with one subfolder per distribution, or a manifest")
    return {name: partial(_read_folder_part, os.path.join(path, name), name) for name in subfolders(path)}


def _read_manifest_part(table: Manifest, name: str, split: Split) -> Listing:
    return list_manifest_split(table, name, split)[0]


def _read_folder_part(folder: str, name: str, split: Split) -> Listing:
    return list_folder_split(folder, split, name)


def _verify_own(
    path: str,
    name: str,
    read: Callable[[Split], Listing],
    open_images: bool,
    workers: int | None,
    progress: Progress | None,
) -> DatasetReport:
    report = DatasetReport(name, name, "  the layouts are those of ImageFolder and ManifestDataset", True, path)
    listings: dict[str, Listing] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        try:
            listing = listings[split] = read(split)
        except DatasetError as error:
            report.problems.append(str(error))
            continue
        report.splits[split] = SplitCount(len(listing.class_names), len(listing), None, None)
        lone = listing.short_classes(2)
        if len(lone):
            report.problems.append(
                f"{split}: {len(lone):,} classes have one image, the first is {listing.class_names[lone[0]]!r}; add "
                "images, or remove the classes"
            )
    _check_files(listings, report, open_images, workers, progress)
    return report


def _verify(
    dataset: type[BenchmarkDataset], root: str, open_images: bool, workers: int | None, progress: Progress | None
) -> DatasetReport:
    report = DatasetReport(dataset.facts.name, dataset.facts.title, dataset.facts.how_to_get())
    try:
        location = dataset.locate(root)
    except DatasetNotFoundError:
        return report
    except DatasetError as error:
        report.found = True
        report.problems.append(str(error).splitlines()[0])
        return report
    report.found, report.folder, report.layout = True, location.folder, location.layout.name
    listings: dict[str, Listing] = {}
    for split in dataset.own_splits:
        try:
            listings[split] = dataset.list_images(location, split)
        except DatasetError as error:
            report.problems.append(str(error))
            return report
    _compare(dataset, listings, report)
    _find_lone(listings, report)
    _check_files(listings, report, open_images, workers, progress)
    report.surplus = _find_surplus(location, listings)
    return report


def _compare(dataset: type[BenchmarkDataset], listings: dict[str, Listing], report: DatasetReport) -> None:
    for split, listing in listings.items():
        published = dataset.facts.splits[split]
        report.splits[split] = SplitCount(len(listing.class_names), len(listing), published.classes, published.images)
        for what, found, expected in (
            ("classes", len(listing.class_names), published.classes),
            ("images", len(listing), published.images),
        ):
            if expected is not None and found != expected:
                text = f"{split}: {found:,} {what} are listed, {expected:,} are published"
                (report.problems if published.certain or what == "images" else report.notes).append(text)
    total = sum(map(len, listings.values()))
    if total != dataset.facts.total:
        report.problems.append(f"{total:,} images are listed in all, {dataset.facts.total:,} are published")


def _find_lone(listings: dict[str, Listing], report: DatasetReport) -> None:
    for split, listing in listings.items():
        if split in ("query", "gallery"):
            continue
        lone = listing.short_classes(2)
        if len(lone):
            report.notes.append(
                f"{split}: {len(lone):,} classes have one image, the first is {listing.class_names[lone[0]]!r}; "
                "nothing can be retrieved for it"
            )
    if "query" in listings:
        without = sorted(set(listings["query"].class_names) - set(listings["gallery"].class_names))
        if without:
            report.notes.append(f"query: {len(without):,} classes are not in the gallery, the first is {without[0]!r}")
        both = sorted(set(listings["train"].class_names) & set(listings["query"].class_names))
        if both:
            report.problems.append(f"{len(both):,} classes both train and test, the first is {both[0]!r}")


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
