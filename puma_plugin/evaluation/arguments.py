"""Checks of what an evaluation is given."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from puma_plugin.utils.arrays import IntArray


def as_column(values: Any, length: int, name: str, dtype: Any, default: npt.NDArray[Any] | None) -> Any:
    """``values`` as an array (length,) of ``dtype``, ``default`` for None.

    Raises ValueError for another shape, and for other values: numbers are not cut off to integers.
    """
    if values is None:
        return default
    array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    kind = np.bool_ if dtype is np.bool_ else np.integer
    if array.shape != (length,) or not np.issubdtype(array.dtype, kind):
        wanted = "booleans" if dtype is np.bool_ else "integers"
        raise ValueError(f"{name} must be {wanted} of shape ({length},), got {array.dtype} of shape {array.shape}")
    return array.astype(dtype)


def check_ks(ks: Sequence[int], name: str) -> tuple[int, ...]:
    """The k of recalls in ascending order, each once; TypeError or ValueError for other than integers >= 1."""
    try:
        ordered = tuple(sorted({operator.index(k) for k in ks}))
    except TypeError as error:
        raise TypeError(f"{name} must hold integers >= 1, such as (1, 2, 4, 8), got {ks!r}") from error
    if not ordered or ordered[0] < 1:
        raise ValueError(f"{name} must hold integers >= 1, got {ordered}")
    return ordered


def check_block_size(block_size: int) -> None:
    """ValueError for less than 1."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}; 4096 is the default")


def names_by_number(names: Sequence[str] | None, present: IntArray) -> dict[int, str]:
    """Number -> name of the distributions; ValueError where a present one has no name or two have the same.

    TypeError for a single string or a mapping.
    """
    if names is None:
        return {d: f"distribution {d}" for d in present.tolist()}
    if isinstance(names, str | Mapping):  # which have a length, and items that are no names
        raise TypeError(f'distribution_names must be a list of names such as ["birds", "cars"], got {names!r}')
    if present.max() >= len(names):
        raise ValueError(f"labels name distribution {present.max()}, but there are {len(names)} distribution_names")
    if len(set(names)) != len(names):
        raise ValueError(f"distribution_names must be distinct, got {list(names)}")
    return dict(enumerate(names))
