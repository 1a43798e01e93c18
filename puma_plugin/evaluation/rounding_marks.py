"""How faiss rounds the queries of an array, by their row: measured, since it is the matrix library's choice."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from puma_plugin.evaluation.ordering import FloatArray, IntArray
from puma_plugin.evaluation.search import load_faiss

# Where two products are summed in different orders, more than half of the distances measured here differ. There may be
# only one item in a block for which two rows do so.
_TRIALS = 4
_COMPARED = 64  # of small blocks, by more trials


def rounding_marks(rows: IntArray, size: int, items: int, width: int) -> IntArray:
    """Mark rows of an array of queries: at rows of equal marks, in any array, a query is rounded alike.

    Args:
        rows: (R,) ascending, less than ``size``.
        size: queries asked at once.
        items: in the gallery.
        width: of queries and gallery rows.

    Returns:
        (R,) numbers of no meaning but that.
    """
    block: int = load_faiss().cvar.distance_compute_blas_database_bs
    rng = np.random.default_rng(0)
    trials = []
    # The gallery is multiplied in blocks, of two shapes at most.
    for shape in sorted({min(items, block), items % block or min(items, block)}):
        for _ in range(max(_TRIALS, _COMPARED // shape)):
            trials.append(_distances_by_row(rows, size, shape, width, rng))
    return np.array([hash(row) for row in zip(*trials, strict=True)], dtype=np.int64)


@lru_cache(maxsize=64)
def _all_marks(size: int, items: int, width: int, threads: int) -> IntArray:
    return rounding_marks(np.arange(size), size, items, width)


def all_rounding_marks(size: int, items: int, width: int) -> IntArray:
    """Marks (size,) of all rows; remembered."""
    return _all_marks(size, items, width, load_faiss().omp_get_max_threads())


def _distances_by_row(rows: IntArray, size: int, items: int, width: int, rng: np.random.Generator) -> list[bytes]:
    """The same query at each of the rows: its distances to a random gallery."""
    centre = rng.standard_normal(width)
    query, gallery = _near(centre, 1, rng), _near(centre, items, rng)
    queries = np.full((size, width), np.nan, np.float32)
    queries[rows] = query
    index = load_faiss().IndexFlatL2(width)
    index.add(gallery)
    _, distances, _ = index.range_search(queries, 5)  # all: they are at most 4, with what is no number at none
    return [row.tobytes() for row in distances.reshape(len(rows), items)]


def _near(centre: npt.NDArray[Any], count: int, rng: np.random.Generator) -> FloatArray:
    """Unit rows whose products are mostly above a half: their last bit shows in the distance."""
    rows = centre + 0.5 * rng.standard_normal((count, len(centre)))
    unit: FloatArray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit
