"""The order of neighbours: merged lists, equal distances, and what rounding can do to it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from puma_plugin.utils.arrays import BoolArray, Float32Array, IntArray, UintArray

# Distances (Q, k), ascending, and positions.
Neighbours = tuple[Float32Array, IntArray]
# Finds a number of neighbours of each query.
Search = Callable[[Float32Array, int], Neighbours]


def settle_ties(search: Search, reference: Search, queries: Float32Array, k: int) -> Neighbours:
    """Search in a way that leaves the order of equal distances open, and order them by position.

    One neighbour more is asked for. If its distance equals that of the k-th, it is open which of the equals were found;
    such queries are asked again of ``reference``, which orders equals by position.

    Args:
        search, reference: give the nearest of the same rows, more than k.
        queries: (Q, D).
        k: how many neighbours.
    """
    distances, indices = search(queries, k + 1)
    order = np.lexsort((indices, distances), axis=-1)
    distances, indices = np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)
    open_ = np.flatnonzero(distances[:, k] == distances[:, k - 1])
    distances, indices = distances[:, :k], indices[:, :k]
    if len(open_):
        distances[open_], indices[open_] = reference(queries[open_], k)
    return distances, indices


def merge_neighbours(first: Neighbours, second: Neighbours, k: int) -> Neighbours:
    """The k nearest of two lists (distances, positions) of the same queries, ties by position.

    Distances are not negative, positions below 2^31; -1 at distance infinity is no neighbour.
    """
    keys = np.concatenate([_keys(*first), _keys(*second)], axis=1)
    keys.sort(axis=1)
    keys = keys[:, :k]
    distances = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return distances, keys.astype(np.uint32).view(np.int32).astype(np.int64)


def _keys(distances: Float32Array, positions: IntArray) -> UintArray:
    """One number for both: the bits of distances that are not negative are ordered as they are."""
    bits = (distances + np.float32(0)).view(np.uint32).astype(np.uint64)  # no negative zeros
    return (bits << np.uint64(32)) | positions.astype(np.uint32)


def rounding_matters(distances: Float32Array, marks: npt.NDArray[Any], depths: IntArray | int, width: int) -> BoolArray:
    """For which queries another rounding of the distances could change the marks of the first ``depths`` neighbours.

    That is where two neighbours of different marks follow each other so closely that their order may be due to
    rounding, or where it is open which of two is the last.

    Args:
        distances: (Q, K) squared, ascending, of unit rows.
        marks: (Q, K), what is of interest about each neighbour, such as whether it is a hit.
        depths: (Q,) or one number, at least 1: how many neighbours count. K is larger, or the gallery ends before.
        width: of the rows.

    Returns:
        (Q,) bool.
    """
    with np.errstate(invalid="ignore"):  # of infinite distances, where the gallery ends
        close = np.diff(distances, axis=1) <= np.float32(_rounding(width))  # small differences are exact
    depths = np.broadcast_to(np.asarray(depths), len(distances))[:, None]
    last = np.arange(1, distances.shape[1])[None]
    differs = marks[:, 1:] != marks[:, :-1]
    matters: BoolArray = (close & ((differs & (last < depths)) | (last == depths))).any(axis=1)
    return matters


def _rounding(width: int) -> float:
    """Squared distances of unit rows that differ by more than this are ordered alike, however products are summed.

    Each is rounded at its last place and, as a random walk, once per column. This is at least seven standard deviations
    of how much a difference of two distances changed when products were summed in another order (widths 37 to 2048,
    spread and concentrated rows).
    """
    return float(2.0**-20 + 2.0**-22 * width**0.5)
