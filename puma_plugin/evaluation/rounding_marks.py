"""How faiss rounds the queries of an array, by their row: measured, since it is the matrix library's choice."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from puma_plugin.evaluation.search import load_faiss
from puma_plugin.utils.arrays import Float32Array, IntArray

# Where two products are summed in different orders, about four of five distances measured here differ. Items are
# multiplied a power of two at a time: an odd number leaves one by itself, for which alone two rows may differ.
_TRIALS, _TRIALS_OF_ODD = 2, 5


def rounding_marks(size: int, items: int, width: int, rows: IntArray | None = None) -> IntArray:
    """Mark rows of an array of queries: at rows of equal marks, in any array, a query is rounded alike.

    Args:
        size: queries asked at once.
        items: in the gallery.
        width: of queries and gallery rows.
        rows: (R,) ascending, less than ``size``; default: all, whose marks are remembered as long as faiss' settings
            stay as they are.

    Returns:
        (R,) numbers of no meaning but that.
    """
    faiss = load_faiss()
    settings = faiss.cvar
    block: int = settings.distance_compute_blas_database_bs
    # The gallery is multiplied in blocks, of two shapes at most.
    shapes = sorted({min(items, block), items % block or min(items, block)})
    if rows is None:
        query_block, threshold = settings.distance_compute_blas_query_bs, settings.distance_compute_blas_threshold
        state = faiss.omp_get_max_threads(), query_block, threshold
        marks = [_marks_of_all(size, shape, width, state) for shape in shapes]
    else:
        marks = [_marks(rows, size, shape, width) for shape in shapes]
    return np.array([hash(row) for row in zip(*marks, strict=True)], dtype=np.int64)


@lru_cache(maxsize=64)
def _marks_of_all(size: int, items: int, width: int, state: tuple[int, ...]) -> list[int]:
    """Remembered for each ``state`` of faiss, whose settings a caller may change in between."""
    return _marks(np.arange(size), size, items, width)


def _marks(rows: IntArray, size: int, items: int, width: int) -> list[int]:
    rng = np.random.default_rng(0)
    trials = _TRIALS_OF_ODD if items % 2 else _TRIALS
    # Of each trial's distances, as many as rows times items, only hashes are kept.
    marks = [[hash(row.tobytes()) for row in _distances_by_row(rows, size, items, width, rng)] for _ in range(trials)]
    return [hash(row) for row in zip(*marks, strict=True)]


def _distances_by_row(rows: IntArray, size: int, items: int, width: int, rng: np.random.Generator) -> Float32Array:
    """The same query at each of the rows: its distances (R, items) to a random gallery."""
    centre = rng.standard_normal(width)
    query, gallery = _near(centre, 1, rng), _near(centre, items, rng)
    queries = np.full((size, width), np.nan, np.float32)
    queries[rows] = query
    index = load_faiss().IndexFlatL2(width)
    index.add(gallery)
    distances: Float32Array = index.range_search(queries, 5)[1]  # all: at most 4; what is no number finds nothing
    return distances.reshape(len(rows), items)


def _near(centre: npt.NDArray[Any], count: int, rng: np.random.Generator) -> Float32Array:
    """Unit rows whose products are mostly above a half: their last bit shows in the distance."""
    rows = centre + 0.5 * rng.standard_normal((count, len(centre)))
    unit: Float32Array = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit
