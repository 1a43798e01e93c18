"""A distribution of one's own: a table of paths and labels."""

import csv
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
from puma_plugin.datasets.listing import Listing, SplitListing
from puma_plugin.datasets.string_table import StringTable
from puma_plugin.utils.arrays import IntArray
from puma_plugin.utils.paths import full_path

_REQUIRED = ("path", "label")
_COLUMNS = (*_REQUIRED, "split", "distribution")
Row = tuple[str | None, ...]


@dataclass(frozen=True)
class Manifest:
    """A table of images, read and checked.

    Attributes:
        path: the file it was read from.
        base: folder that the paths are relative to.
        keys: (N) paths.
        labels: (N,) index into ``label_names``.
        label_names: all labels as they are written, sorted (as numbers if all are whole numbers, such as 10 or 10.0).
        splits: (N,) index into SPLITS, or -1 where the table has no column "split".
        distributions: (N,) index into ``distribution_names``.
        distribution_names: in the order of their first row; one, named after the file, without such a column.
    """

    path: str
    base: str
    keys: StringTable
    labels: IntArray
    label_names: list[str]
    splits: NDArray[np.int8]
    distributions: NDArray[np.int32]
    distribution_names: list[str]

    def has_splits(self, name: str) -> bool:
        """Whether the distribution's rows name their split, so that its classes need not be split."""
        mine = self.distributions == self.distribution_names.index(name)
        return bool((self.splits[mine] >= 0).any())


class ManifestDataset(DistributionDataset):
    """One distribution of a manifest.

    Args:
        manifest: a CSV (with a heading) or Parquet file, or what :func:`read_manifest` made of one (to read it once for
            several distributions). Columns: ``path`` (relative to ``root``), ``label``, and optionally ``split``
            (train, test, query, gallery) and ``distribution``. Without ``split`` the distribution is split by classes.
        split: "train", "test" (with query and gallery rows: both, with masks), "query" or "gallery".
        transform, bad_images, known_bad: see :class:`DistributionDataset`.
        distribution: which one; may be None if there is only one.
        root: folder that the paths are relative to; None: the manifest's folder.
        test_fraction: share of the classes that test, where there is no column ``split``: the last in sorted order.
        min_images: images that each class must have (of query and gallery together; classes of the gallery alone may
            have any number).
        small_classes: "raise" or "skip", what becomes of classes with fewer; they are left out before the others are
            split.

    Raises:
        DatasetError: an unreadable manifest, a missing column, an unknown split (each with file and line), no rows for
            ``split``, a query class that is not in the gallery, and what :class:`DistributionDataset` raises.
        ImportError: a Parquet file without pyarrow installed.
    """

    def __init__(
        self,
        manifest: "str | os.PathLike[str] | Manifest",
        split: Split = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        bad_images: BadImages = "raise",
        known_bad: Collection[str] | str | os.PathLike[str] | None = None,
        distribution: str | None = None,
        root: str | os.PathLike[str] | None = None,
        test_fraction: float = 0.5,
        min_images: int = 2,
        small_classes: SmallClasses = "raise",
    ) -> None:
        check_split(split)
        table = manifest if isinstance(manifest, Manifest) else read_manifest(manifest, root)
        name = _choose(table, distribution)
        listed = list_manifest_split(table, name, split, test_fraction)
        least = 1 if listed.one_part else min_images
        super().__init__(
            listed.listing, name, split, transform, bad_images, known_bad, least, small_classes, listed.divide
        )


def read_manifest(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Manifest:
    """Read a CSV or Parquet manifest (see :class:`ManifestDataset` for its columns).

    Raises:
        DatasetError: naming the file and the row.
        ImportError: a Parquet file without pyarrow installed.
    """
    file = full_path(path)
    base = os.path.dirname(file) if root is None else full_path(root)
    if not os.path.isfile(file):
        raise DatasetError(
            f"manifest {file} does not exist; give a CSV or Parquet file with the columns path and label"
        )
    rows = _parquet_rows(file) if _is_parquet(file) else _csv_rows(file)
    columns = list(next(rows))
    absent = [name for name in _REQUIRED if name not in columns]
    if absent:
        raise DatasetError(
            f"manifest {file} has no column {' and no column '.join(absent)} (it has {', '.join(map(str, columns))}); "
            f"the columns are {', '.join(_COLUMNS)}, the last two optional"
            + ("" if _is_parquet(file) else "; commas separate them")
        )
    return _collect(file, base, columns, rows)


def _is_parquet(file: str) -> bool:
    return file.lower().endswith((".parquet", ".pq"))


def _csv_rows(file: str) -> Iterator[Row]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        # Spaces around values do not count, so that a quote may follow one.
        reader = csv.reader(lines, skipinitialspace=True)
        try:
            heading = next(reader, None)
            if heading is None:
                raise DatasetError(f"manifest {file} is empty; its first line names the columns: {','.join(_COLUMNS)}")
            yield tuple(name.strip() for name in heading)
            for row in reader:
                if row and len(row) != len(heading):
                    raise DatasetError(
                        f"line {reader.line_num} of manifest {file} has {len(row)} columns, the heading has "
                        f"{len(heading)}; quote values that contain a comma"
                    )
                if row:
                    yield tuple(value.strip() for value in row)
        except csv.Error as error:
            raise DatasetError(
                f"line {reader.line_num} of manifest {file} cannot be read ({error}); save it as CSV in UTF-8"
            ) from error
        except UnicodeDecodeError as error:
            # It is decoded in blocks, far ahead of the line that the reader is at.
            line, byte = _first_of_another_encoding(file)
            raise DatasetError(
                f"line {line} of manifest {file} cannot be read (byte {byte:#04x} is no UTF-8); save it as CSV in UTF-8"
            ) from error


def _first_of_another_encoding(file: str) -> tuple[int, int]:
    """The first line that is not UTF-8, counted from 1, and its first byte that is not."""
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as lines:
        found = ((number, re.search(r"[\udc80-\udcff]", line)) for number, line in enumerate(lines, 1))
        return next((number, ord(mark[0]) - 0xDC00) for number, mark in found if mark)


def _parquet_rows(file: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(
            f"manifest {file} is a Parquet file, which needs pyarrow: pip install pyarrow, or save the manifest as CSV"
        ) from error
    try:
        # Read in pieces: a row group, which may be the whole table, need not be in memory at once.
        table = parquet.ParquetFile(file, buffer_size=1 << 20)
        columns = [name for name in table.schema_arrow.names if name in _COLUMNS]
        yield tuple(columns if set(_REQUIRED) <= set(columns) else table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=16384, columns=columns):
            values = [[_text(value) for value in column.to_pylist()] for column in batch.columns]
            yield from zip(*values, strict=True)
    except UnicodeDecodeError as error:
        raise DatasetError(f"manifest {file} holds text that is no UTF-8 ({error}); write it in UTF-8") from error
    except (ArrowException, OSError) as error:
        raise DatasetError(f"manifest {file} is no readable Parquet file ({error}); write it again") from error


def _text(value: Any) -> str | None:
    """A cell of a Parquet table; missing values may also come as NaN."""
    if value is None or value != value:
        return None
    return (value.decode("utf-8") if isinstance(value, bytes) else str(value)).strip()


class _Names:
    """Numbers strings in the order in which they come."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        return self.places.setdefault(name, len(self.places))


def _collect(file: str, base: str, columns: list[str | None], rows: Iterable[Row]) -> Manifest:
    place = {name: columns.index(name) for name in _COLUMNS if name in columns}
    split_at, distribution_at = place.get("split"), place.get("distribution")
    split_number = {name: number for number, name in enumerate(SPLITS)}
    labels, distributions = _Names(), _Names()
    own_name = os.path.splitext(os.path.basename(file))[0]
    # C arrays: a million rows as Python tuples would take more memory than everything else.
    label_column, split_column, distribution_column = array("i"), array("b"), array("i")

    def keys() -> Iterator[str]:
        for number, row in enumerate(rows, 1):
            if any(row[at] in (None, "") for at in place.values()):
                empty = next(name for name, at in place.items() if row[at] in (None, ""))
                raise DatasetError(f"row {number} of manifest {file} has no {empty}; fill it in, or remove the row")
            split = -1
            if split_at is not None:
                split = split_number.get(str(row[split_at]), -1)
                if split < 0:
                    raise DatasetError(
                        f"row {number} of manifest {file} has the split {row[split_at]!r}; give one of "
                        f"{', '.join(SPLITS)}"
                    )
            distribution = own_name if distribution_at is None else str(row[distribution_at])
            label_column.append(labels(str(row[place["label"]])))
            split_column.append(split)
            distribution_column.append(distributions(distribution))
            yield _relative(str(row[place["path"]]), base, file, number)

    table = StringTable(keys())
    names = _in_order(labels.places)
    order = np.empty(len(names), np.int64)
    order[[labels.places[name] for name in names]] = np.arange(len(names))
    manifest = Manifest(
        file,
        base,
        table,
        order[np.asarray(label_column, np.int64)],
        names,
        np.asarray(split_column, np.int8),
        np.asarray(distribution_column, np.int32),
        list(distributions.places),
    )
    _require_one_spelling(manifest)
    return manifest


def _whole(label: str) -> int:
    """The number that a label is; of floats too, which a column of whole numbers easily becomes.

    Raises:
        ValueError: it is none, or not whole.
    """
    if not re.fullmatch(r"-?[0-9]+(\.0+)?", label):  # int() would take 1_0 for 10
        raise ValueError(label)
    return int(label.partition(".")[0])


def _in_order(labels: Iterable[str]) -> list[str]:
    names = list(labels)
    try:
        return sorted(names, key=lambda name: (_whole(name), name))
    except ValueError:
        return sorted(names)


def _require_one_spelling(table: Manifest) -> None:
    """DatasetError where a distribution writes a whole number in two ways (7, 07, 7.0), which would be two classes."""
    spellings: dict[int, list[int]] = {}
    for place, name in enumerate(table.label_names):
        with suppress(ValueError):
            spellings.setdefault(_whole(name), []).append(place)
    for one, other in (pair for places in spellings.values() for pair in combinations(places, 2)):
        homes = (set(table.distributions[table.labels == place].tolist()) for place in (one, other))
        for distribution in set.intersection(*homes):
            first, second = sorted((table.label_names[one], table.label_names[other]), key=len)
            raise DatasetError(
                f"{table.distribution_names[distribution]}: manifest {table.path} has the labels {first!r} and "
                f"{second!r}, which would be two classes; write numbers in one way, or let codes begin with a letter"
            )


def _relative(path: str, base: str, file: str, number: int) -> str:
    if "//" in path or "/." in path or path.startswith("."):
        path = os.path.normpath(path)  # one file, one key
    if not os.path.isabs(path):
        return path.replace(os.sep, "/")
    if not path.startswith(os.path.join(base, "")):
        raise DatasetError(
            f"row {number} of manifest {file} has the path {path}, which is not below {base}; give the common folder "
            "of the images as root"
        )
    return path[len(os.path.join(base, "")) :].replace(os.sep, "/")


def _choose(table: Manifest, distribution: str | None) -> str:
    names = table.distribution_names
    if not names:
        raise DatasetError(f"manifest {table.path} has no rows; add images, or leave it out")
    if distribution is None and len(names) > 1:
        raise DatasetError(
            f"manifest {table.path} holds {len(names)} distributions ({', '.join(names[:10])}); say which as "
            "distribution="
        )
    if distribution is not None and distribution not in names:
        raise DatasetError(
            f"manifest {table.path} holds no distribution {distribution!r}; it holds {', '.join(names[:10])}"
        )
    return names[0] if distribution is None else distribution


def list_manifest_split(table: Manifest, name: str, split: Split, test_fraction: float = 0.5) -> SplitListing:
    """The images of a split by the rules of :class:`ManifestDataset`, without looking at the number per class.

    Raises:
        DatasetError: rows that these rules do not cover, or none of the split.
    """
    dataset = f"{name} ({split})"
    mine = _rows_of(table, name)
    whole = _listing(table)
    numbers = table.splits[mine]
    parts = {SPLITS[number]: mine[numbers == number] for number in np.unique(numbers).tolist() if number >= 0}
    one_part = split in ("query", "gallery") and split in parts
    _require_apart(table, parts, name)
    divide = None
    if not parts:
        listing = whole.take(mine)
        divide = partial(split_by_class, test_fraction=test_fraction, train=split == "train", dataset=dataset)
    elif split == "test" and {"query", "gallery"} & parts.keys():
        listing = _with_masks(table, whole, parts, dataset)
    else:
        wanted = split if split in parts or split == "train" else "test"
        if wanted not in parts:
            raise DatasetError(
                f"{dataset}: manifest {table.path} has no row for it (only {', '.join(sorted(parts))}); add rows with "
                f"the split {split}, or remove the column to split by classes"
            )
        listing = whole.take(parts[wanted])
    _require_distinct(listing, table, dataset)
    return SplitListing(listing, divide, one_part)


def list_manifest_distribution(table: Manifest, name: str) -> Listing:
    """All images of a distribution, whatever their split."""
    listing = _listing(table).take(_rows_of(table, name))
    _require_distinct(listing, table, name)
    return listing


def _listing(table: Manifest) -> Listing:
    remedy = (
        f"the manifest's paths are relative to {table.base}, with / between folders: give another folder as root "
        "(--data.root), or copy the images again"
    )
    return Listing(table.base, table.keys, table.labels, table.label_names, remedy=remedy)


def _rows_of(table: Manifest, name: str) -> IntArray:
    return np.flatnonzero(table.distributions == table.distribution_names.index(name))


def _require_distinct(listing: Listing, table: Manifest, dataset: str) -> None:
    if len(set(listing.keys)) == len(listing):
        return
    key, uses = Counter(listing.keys).most_common(1)[0]
    raise DatasetError(
        f"{dataset}: manifest {table.path} lists {key} {uses} times, so it would find itself; remove the repeated rows"
    )


def _require_apart(table: Manifest, parts: dict[str, IntArray], dataset: str) -> None:
    if "train" not in parts:
        return
    train = set(table.keys.take(parts["train"]))
    for part, rows in parts.items():
        both = [key for key in table.keys.take(rows) if key in train] if part != "train" else []
        if both:
            raise DatasetError(
                f"{dataset}: manifest {table.path} lists {both[0]} for train and for {part} ({len(both):,} such "
                "images), so the test would be of images that were trained on; remove one of the rows"
            )


def _with_masks(table: Manifest, whole: Listing, parts: dict[str, IntArray], dataset: str) -> Listing:
    none = np.zeros(0, np.int64)
    both, query, gallery = (parts.get(part, none) for part in ("test", "query", "gallery"))
    queries = np.unique(table.labels[query])
    lone = np.setdiff1d(queries, table.labels[np.concatenate([both, gallery])])
    if len(lone):
        raise DatasetError(
            f"{dataset}: query class {table.label_names[lone[0]]!r} is in no gallery row of manifest {table.path} "
            f"({len(lone):,} such classes), so its queries can find nothing; add gallery rows, or remove it from query"
        )
    rows = np.concatenate([both, query, gallery])
    places = np.arange(len(rows))
    listing = whole.take(rows)
    return replace(
        listing,
        is_query=places < len(both) + len(query),
        is_gallery=(places < len(both)) | (places >= len(both) + len(query)),
    )


def distributions_of(manifest: str | os.PathLike[str] | Manifest, **arguments: Any) -> dict[str, ManifestDataset]:
    """Every distribution of a manifest, by name; the file is read once.

    Args:
        arguments: as for :class:`ManifestDataset`, without ``distribution``.
    """
    root = arguments.pop("root", None)
    table = manifest if isinstance(manifest, Manifest) else read_manifest(manifest, root)
    return {name: ManifestDataset(table, distribution=name, **arguments) for name in table.distribution_names}
