"""Checks of what an evaluation is given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def split_labels(labels: Any, length: int) -> tuple[IntArray, IntArray]:
    """Classes, numbered densely, and distributions of labels (length, 2).

    Raises:
        ValueError: another shape, no integers, negative numbers, or a class in two distributions.
    """
    array = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    if array.shape != (length, 2) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({length}, 2), columns class and distribution; got {array.dtype} of "
            f"shape {array.shape}. UnifiedDataset.labels has this form; for one dataset add a column of zeros"
        )
    if length == 0:
        raise ValueError("there is nothing to evaluate: embeddings and labels are empty")
    array = array.astype(np.int64)
    if array.min() < 0:
        raise ValueError(f"labels must not be negative, got {array.min()}")
    pairs = np.unique(array, axis=0)
    shared = pairs[1:, 0][pairs[1:, 0] == pairs[:-1, 0]]
    if len(shared):
        raise ValueError(
            f"class {shared[0]} occurs in more than one distribution; classes must be numbered over all distributions "
            "(UnifiedDataset does this)"
        )
    # Dense class numbers keep the counting arrays small whatever the labels are.
    return np.unique(array[:, 0], return_inverse=True)[1].astype(np.int64), array[:, 1]


def as_column(values: Any, length: int, name: str, dtype: Any, default: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``values`` as an array (length,) of ``dtype``, ``default`` for None; ValueError for another shape."""
    if values is None:
        return default
    array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    if array.shape != (length,) or (dtype is np.bool_ and array.dtype != np.bool_):
        raise ValueError(f"{name} must be {np.dtype(dtype).name} of shape ({length},), got {array.dtype} {array.shape}")
    return array.astype(dtype)


def names_by_number(names: Sequence[str] | None, present: IntArray) -> dict[int, str]:
    """Number -> name of the distributions; ValueError where a present one has no name or two have the same."""
    if names is None:
        return {d: f"distribution {d}" for d in present.tolist()}
    if present.max() >= len(names):
        raise ValueError(f"labels name distribution {present.max()}, but there are {len(names)} distribution_names")
    if len(set(names)) != len(names):
        raise ValueError(f"distribution_names must be distinct, got {list(names)}")
    return dict(enumerate(names))
