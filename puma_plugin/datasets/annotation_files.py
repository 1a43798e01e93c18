"""Parsers of the annotation files that the benchmark's datasets have, with errors that name dataset and file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from puma_plugin.datasets.errors import DatasetError


@contextmanager
def reading(dataset: str, *files: str) -> Iterator[None]:
    """Turn whatever goes wrong while annotation files are parsed into a DatasetError that names them."""
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{dataset}: {error.filename} is missing; unpack the archive again") from error
    # The parsers belong to several libraries and raise whatever the damage leads to.
    except Exception as error:
        raise DatasetError(
            f"{dataset}: {', '.join(files)} cannot be parsed ({type(error).__name__}: {error}); the file is damaged or "
            "not the published one, copy it again from the archive"
        ) from error


def read_columns(dataset: str, path: str, columns: int, skip: int = 0) -> list[list[str]]:
    """The lines of a text file, each split at blanks into ``columns`` pieces (the last keeps its blanks).

    Args:
        skip: lines to leave out at the top.

    Raises:
        DatasetError: naming the file and the line with too few pieces.
    """
    rows = []
    with reading(dataset, path), open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if number <= skip or not line.strip():
                continue
            pieces = line.strip().split(maxsplit=columns - 1)
            if len(pieces) != columns:
                raise DatasetError(
                    f"{dataset}: line {number} of {path} has {len(pieces)} columns instead of {columns}: "
                    f"{line.strip()!r}; copy the file again from the archive"
                )
            rows.append(pieces)
    return rows


def read_numbered(dataset: str, folder: str) -> tuple[list[str], np.ndarray]:
    """Keys and published class numbers from ``images.txt`` and ``image_class_labels.txt``, in the order of the former.

    Raises:
        DatasetError: a line that cannot be parsed, or an image that is in one of the files only.
    """
    images, labels = (os.path.join(folder, name) for name in ("images.txt", "image_class_labels.txt"))
    path_of = dict(read_columns(dataset, images, 2))
    with reading(dataset, labels):
        class_of = {image: int(number) for image, number in read_columns(dataset, labels, 2)}
    odd = path_of.keys() ^ class_of.keys()
    if odd:
        raise DatasetError(
            f"{dataset}: image {min(odd)} is in only one of {images} and {labels} ({len(odd):,} such images); the "
            "two files are not of the same archive, unpack it again"
        )
    return [f"images/{path}" for path in path_of.values()], np.array([class_of[image] for image in path_of], np.int64)


def read_mat(dataset: str, path: str, *fields: str) -> dict[str, Any]:
    """Variables of a MATLAB file, with dimensions of size one removed.

    Raises:
        DatasetError: the file is missing, damaged, or lacks one of ``fields``.
    """
    from scipy.io import loadmat

    with reading(dataset, path):
        content: dict[str, Any] = loadmat(path, squeeze_me=True)
    for name in fields:
        if name not in content:
            held = ", ".join(key for key in content if not key.startswith("__"))
            raise DatasetError(
                f"{dataset}: {path} holds no variable {name!r} (it holds {held or 'nothing'}); it is another file "
                "than the published one, copy it again from the source"
            )
    return content


def check_range(dataset: str, path: str, classes: np.ndarray, count: int) -> None:
    """Raise DatasetError unless all class numbers lie in 0..count-1 (they are published counted from 1)."""
    if len(classes) and (classes.min() < 0 or classes.max() >= count):
        wrong = int(classes[(classes < 0) | (classes >= count)][0]) + 1
        raise DatasetError(
            f"{dataset}: {path} contains class number {wrong}, the numbers run from 1 to {count}; copy the file again "
            "from the source"
        )
