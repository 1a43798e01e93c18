"""Labels of items of several distributions: columns class and distribution."""

from typing import Any

import numpy as np

from puma_plugin.utils.arrays import IntArray


def split_labels(labels: Any, length: int | None = None) -> tuple[IntArray, IntArray, IntArray]:
    """The classes there are, each item's class as a position among them, and its distribution.

    Positions instead of the classes' own numbers keep counting arrays small whatever the labels are.

    Args:
        labels: (N, 2) integers, a tensor or what numpy takes.
        length: N, where it is known.

    Returns:
        (C,) ascending class numbers, (N,) positions among them, (N,) distributions.

    Raises:
        TypeError: a dataset in place of its labels.
        ValueError: another shape, no items, no integers, negative numbers, or a class in two distributions.
    """
    if hasattr(labels, "labels"):
        raise TypeError(f"labels must be integers of shape (N, 2), got a {type(labels).__name__}: pass its .labels")
    array = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    wanted = array.shape[:1] if length is None else (length,)
    if array.shape != (*wanted, 2) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({'N' if length is None else length}, 2), columns class and "
            f"distribution; got {array.dtype} of shape {array.shape}. UnifiedDataset.labels has this form; for one "
            "dataset add a column of zeros"
        )
    if len(array) == 0:
        raise ValueError("labels are empty: there are no items")
    if array.min() < 0:
        raise ValueError(f"labels must not be negative, got {array.min()}")
    numbers, first, classes = np.unique(array[:, 0], return_index=True, return_inverse=True)
    distributions = array[:, 1].astype(np.int64)
    shared = np.flatnonzero(distributions != distributions[first][classes])
    if len(shared):
        raise ValueError(
            f"class {numbers[classes[shared[0]]]} occurs in more than one distribution; classes must be numbered over "
            "all distributions (UnifiedDataset does this)"
        )
    return numbers.astype(np.int64), classes.astype(np.int64), distributions
