"""Checks a folder of benchmark datasets against what is published, before a training finds out the hard way."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from puma_plugin.datasets.benchmark import BENCHMARK, benchmark_names
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Location
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.errors import DatasetError, DatasetNotFoundError
from puma_plugin.datasets.image_files import find_defects, find_missing, is_image_name, scan_images
from puma_plugin.datasets.listing import Listing

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BadFile:
    """A listed image that cannot be used."""

    key: str
    path: str
    reason: str


@dataclass(frozen=True)
class SplitCount:
    """Found against published; None where nothing is published."""

    classes: int
    images: int
    published_classes: int | None
    published_images: int | None


@dataclass
class DatasetReport:
    """What was found of one dataset.

    Attributes:
        name: the dataset.
        found: whether its folder is there.
        folder, layout: where, and in which of its layouts.
        splits: counts by split.
        problems: what would make a run fail, or its numbers incomparable.
        notes: what is unusual but harms no run.
        missing: listed images that are not there.
        unreadable: images that cannot be decoded (only looked for on request).
        surplus: images below the dataset's image folders that are in no list (they are never used).
        opened: how many images were decoded.
    """

    name: str
    found: bool = False
    folder: str = ""
    layout: str = ""
    splits: dict[str, SplitCount] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[BadFile] = field(default_factory=list)
    unreadable: list[BadFile] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    opened: int = 0

    @property
    def ok(self) -> bool:
        """Whether a run with this dataset would work."""
        return self.found and not (self.problems or self.missing or self.unreadable)


@dataclass(frozen=True)
class VerifyReport:
    """What was found in a folder of datasets.

    Attributes:
        root: the folder.
        datasets: a report for each dataset looked for.
        required: names of the datasets that must be there; empty: at least one.
    """

    root: str
    datasets: list[DatasetReport]
    required: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a run with the required datasets (all that are there, if none is required) would work."""
        wanted = [report for report in self.datasets if report.found or report.name in self.required]
        return bool(wanted) and all(report.ok for report in wanted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``known_bad=`` of the datasets reads it."""
        datasets = [{**asdict(report), "ok": report.ok} for report in self.datasets]
        return {"root": self.root, "ok": self.ok, "required": list(self.required), "datasets": datasets}

    def text(self, most: int = 5) -> str:
        """The report for people.

        Args:
            most: files shown of each kind.
        """
        lines = [f"datasets in {self.root}", ""]
        for report in self.datasets:
            lines += [*_dataset_lines(report, most, report.name in self.required), ""]
        used = [report.name for report in self.datasets if report.ok]
        failing = [
            report.name for report in self.datasets if not report.ok and (report.found or report.name in self.required)
        ]
        absent = [report.name for report in self.datasets if not report.found and report.name not in self.required]
        summary = [f"ready: {', '.join(used) or 'none'}"]
        summary += [f"would fail: {', '.join(failing)}"] if failing else []
        summary += [f"not there: {', '.join(absent)}"] if absent else []
        return "\n".join([*lines, "; ".join(summary)])


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
        open_images: decode every image (a minute per 100,000 on 8 cores, by the disk).
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


def _verify(
    dataset: type[BenchmarkDataset], root: str, open_images: bool, workers: int | None, progress: Progress | None
) -> DatasetReport:
    report = DatasetReport(dataset.facts.name)
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
    _count(dataset, listings, report)
    _find_lone(listings, report)
    for listing in listings.values():
        _check_files(listing, report, open_images, workers, progress)
    report.surplus = _find_surplus(location, listings)
    return report


def _count(dataset: type[BenchmarkDataset], listings: dict[str, Listing], report: DatasetReport) -> None:
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
        lone = np.flatnonzero(listing.counts() == 1)
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
    listing: Listing, report: DatasetReport, open_images: bool, workers: int | None, progress: Progress | None
) -> None:
    missing = find_missing(listing.base, listing.keys)

    def bad(place: int, reason: str) -> BadFile:
        key = listing.keys[place]
        return BadFile(key, os.path.join(listing.base, key), reason)

    report.missing += [bad(place, "missing") for place in missing]
    if not open_images:
        return
    present = np.setdiff1d(np.arange(len(listing)), np.array(missing, np.int64))
    paths = listing.keys.take(present).with_prefix(os.path.join(listing.base, ""))
    before = report.opened

    def count(done: int) -> None:
        if progress is not None:
            progress(report.name, before + done, CATALOGUE[report.name].total)

    defects = find_defects(paths, workers, count)
    report.unreadable += [bad(int(present[place]), reason) for place, reason in defects.items()]
    report.opened += len(present)


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


def _dataset_lines(report: DatasetReport, most: int, required: bool) -> list[str]:
    facts = CATALOGUE[report.name]
    if not report.found:
        return [f"{'MISSING' if required else '  --   '} {facts.title} ({report.name})", facts.how_to_get()]
    lines = [f"{'  ok   ' if report.ok else ' FAILS '} {facts.title} ({report.name})"]
    if report.folder:
        opened = f", {report.opened:,} images opened" if report.opened else ""
        lines.append(f"  {report.folder} [{report.layout}]{opened}")
    for split, count in report.splits.items():
        classes = _against(count.classes, count.published_classes)
        images = _against(count.images, count.published_images)
        lines.append(f"  {split:<8}{classes} classes, {images} images")
    lines += [f"  problem: {text}" for text in report.problems]
    lines += _file_lines("missing", [file.path for file in report.missing], most)
    lines += _file_lines("unreadable", [f"{file.path} ({file.reason})" for file in report.unreadable], most)
    lines += [f"  note: {text}" for text in report.notes]
    lines += _file_lines("in no list, never used", report.surplus, most)
    if not report.ok:
        skip = "; or train with bad_images: skip" if report.missing or report.unreadable else ""
        lines += [f"  to mend it, unpack the archive again{skip}", facts.how_to_get()]
    return lines


def _file_lines(what: str, files: list[str], most: int) -> list[str]:
    if not files:
        return []
    more = ["    ..."] if len(files) > most else []
    return [f"  {what}: {len(files):,} images", *(f"    {file}" for file in files[:most]), *more]


def _against(found: int, published: int | None) -> str:
    if published is None or found == published:
        return f"{found:,}"
    return f"{found:,} (published {published:,})"
