"""What a check of datasets found, for people and for programs."""

from dataclasses import asdict, dataclass, field
from typing import Any

from puma_plugin.datasets.image_scan import EXTENSIONS


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
        title: its full name.
        how_to_get: where to get it and how to lay it out, as indented lines; or what to do instead.
        found: whether its folder is there.
        folder, layout: where, and in which of its layouts.
        splits: counts by split.
        problems: what would make a run fail.
        notes: what is unusual but stops no run, such as counts that make its figures incomparable.
        missing: listed images that are not there.
        unreadable: images that cannot be decoded (only looked for on request).
        surplus: images below the dataset's image folders that are in no list (they are never used).
        left_aside: of one's own folders, how many files are not used, by ending: not read as images, or images outside
            the class folders that train and test.
        opened: how many images were decoded.
        hint: where it may be, if it was not found.
    """

    name: str
    title: str
    how_to_get: str
    found: bool = False
    folder: str = ""
    layout: str = ""
    splits: dict[str, SplitCount] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[BadFile] = field(default_factory=list)
    unreadable: list[BadFile] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    left_aside: dict[str, int] = field(default_factory=dict)
    opened: int = 0
    hint: str = ""

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
        loose: of one's own folders, how many images lie in ``root`` itself, outside of every distribution.
    """

    root: str
    datasets: list[DatasetReport]
    required: tuple[str, ...] = ()
    loose: int = 0

    @property
    def ok(self) -> bool:
        """Whether a run with the required datasets (all that are there, if none is required) would work."""
        wanted = [report for report in self.datasets if report.found or report.name in self.required]
        return bool(wanted) and all(report.ok for report in wanted)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``known_bad=`` of the datasets reads it."""
        datasets = [{**asdict(report), "ok": report.ok} for report in self.datasets]
        facts = {"root": self.root, "ok": self.ok, "required": list(self.required), "loose": self.loose}
        return {**facts, "datasets": datasets}

    def text(self, most: int = 5) -> str:
        """The report for people.

        Args:
            most: files shown of each kind.
        """
        lines = [f"datasets in {self.root}", ""]
        if self.loose:
            images = "1 image lies" if self.loose == 1 else f"{self.loose:,} images lie"
            lines += [f"  {images} directly in {self.root}, outside of every distribution, and would not be used", ""]
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


def _dataset_lines(report: DatasetReport, most: int, required: bool) -> list[str]:
    title = report.title if report.title == report.name else f"{report.title} ({report.name})"
    if not report.found:
        hint = [f"  {report.hint}"] if report.hint else []
        return [f"{'MISSING' if required else '  --   '} {title}", *hint, report.how_to_get]
    lines = [f"{'  ok   ' if report.ok else ' FAILS '} {title}"]
    if report.folder:
        opened = f", {report.opened:,} images opened" if report.opened else ""
        layout = f" [{report.layout}]" if report.layout else ""
        lines.append(f"  {report.folder}{layout}{opened}")
    for split, count in report.splits.items():
        classes = _against(count.classes, count.published_classes)
        images = _against(count.images, count.published_images)
        lines.append(f"  {split:<8}{classes} classes, {images} images")
    lines += [f"  problem: {text}" for text in report.problems]
    lines += _file_lines("missing", [file.path for file in report.missing], most)
    lines += _file_lines("unreadable", [f"{file.path} ({file.reason})" for file in report.unreadable], most)
    lines += [f"  note: {text}" for text in report.notes]
    lines += _file_lines("in no list, never used", report.surplus, most)
    lines += _left_aside_lines(report.left_aside)
    if report.missing or report.unreadable:
        lines.append("  to mend it, copy the images again, or train with --data.bad_images skip")
    if not report.ok:
        lines.append(report.how_to_get)
    return lines


def _file_lines(what: str, files: list[str], most: int) -> list[str]:
    if not files:
        return []
    more = ["    ..."] if len(files) > most else []
    images = "image" if len(files) == 1 else "images"
    return [f"  {what}: {len(files):,} {images}", *(f"    {file}" for file in files[:most]), *more]


def _left_aside_lines(endings: dict[str, int]) -> list[str]:
    if not endings:
        return []
    total = sum(endings.values())
    counts = [f"{ending or 'no ending'} {count:,}" for ending, count in endings.items()]
    # Of these it is not the ending that keeps them out, but where they lie.
    outside = [ending for ending in endings if ending in EXTENSIONS]
    reasons = [f"files are read that end in {', '.join(sorted(EXTENSIONS))}"] if len(outside) < len(endings) else []
    reasons += [f"{', '.join(outside)}: outside the class folders that train and test"] if outside else []
    files = "file" if total == 1 else "files"
    return [f"  {total:,} {files} left aside: {', '.join(counts)} ({'; '.join(reasons)})"]


def _against(found: int, published: int | None) -> str:
    if published is None or found == published:
        return f"{found:,}"
    return f"{found:,} (published {published:,})"
