"""Some of many queries, laid out so that faiss rounds their distances as if all of them were asked at once.

faiss multiplies blocks of queries with blocks of the gallery. How a product is rounded depends on the shape of the two
blocks and on where the query stands in its own, but not on the other queries beside it.
"""

from collections.abc import Iterator

import numpy as np

from puma_plugin.evaluation.ordering import Neighbours, merge_neighbours
from puma_plugin.evaluation.rounding_marks import rounding_marks
from puma_plugin.evaluation.search import FaissSearcher, load_faiss
from puma_plugin.utils.arrays import Float32Array, IntArray

# Neighbours that faiss finds at once, at most, unless a block of the gallery is more: bounds the memory.
_MOST_NEIGHBOURS = 1 << 23
# Queries of arrays that may do instead of all; their last rows are multiplied in different steps. Of far fewer, faiss
# might not find the distances by multiplication.
_SMALLER = (1024, 1040)


class TogetherSearcher(FaissSearcher):
    """A gallery of unit rows, searched by faiss on the CPU for some of ``total`` queries as if all were asked.

    Args:
        gallery: (G, D) unit rows.
        ids: (G,) item ids or None.
        places: (G,) ascending, what stands for a row in results; default: its position.
        total: queries that would be asked at once.
    """

    def __init__(
        self, gallery: Float32Array, ids: IntArray | None, places: IntArray | None = None, *, total: int
    ) -> None:
        super().__init__(gallery, ids, places)
        self.total = total

    def search_at(self, places: IntArray, queries: Float32Array, k: int, query_ids: IntArray | None) -> Neighbours:
        """As ``search``, for queries that stand at these distinct ``places`` (Q,) among all."""
        return self.leave_out_own(lambda wanted: self._find_at(places, queries, wanted), k, query_ids)

    def _find_at(self, places: IntArray, queries: Float32Array, k: int) -> Neighbours:
        distances, positions = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for chosen, rows, size in lay_out(places, self.total, *self.gallery.shape):
            # What is not a number is nearer than nothing: these rows cost their products only.
            asked = np.full((size, queries.shape[1]), np.nan, np.float32)
            asked[rows] = queries[chosen]
            distances[chosen], positions[chosen] = self._find_rows(asked, rows, k)
        return distances, positions

    def _find_rows(self, asked: Float32Array, rows: IntArray, k: int) -> Neighbours:
        """Deep searches go through the gallery in parts that consist of whole blocks."""
        block = load_faiss().cvar.distance_compute_blas_database_bs
        step = max(block, _MOST_NEIGHBOURS // len(asked) // block * block)
        step = len(self.gallery) if k <= step else step
        merged: Neighbours | None = None
        for start in range(0, len(self.gallery), step):
            part = self.gallery[start : start + step]
            found = load_faiss().knn(asked, part, min(k, len(part)))
            nearest = found[0][rows], found[1][rows] + start
            merged = nearest if merged is None else merge_neighbours(merged, nearest, k)
        assert merged is not None
        return merged


def lay_out(places: IntArray, total: int, items: int, width: int) -> Iterator[tuple[IntArray, IntArray, int]]:
    """Which of the queries to ask next, at which rows of an otherwise empty array, and how many rows that has.

    Args:
        places: (Q,) distinct, of ``total``.
        total: queries that would be asked at once.
        items: in the gallery.
        width: of queries and gallery rows.
    """
    settings = load_faiss().cvar
    block: int = settings.distance_compute_blas_query_bs
    if total <= block:
        yield np.arange(len(places)), places, total
        return
    # Some whole blocks and the last one, as many as it takes for distances to be found by multiplication if those of
    # all queries are.
    before = min(total // block, -(-settings.distance_compute_blas_threshold // (block * width))) * block
    last = total // block * block
    long = before + total - last
    own_rows = np.where(places < last, places % block, places - last + before)
    distinct, of_distinct = np.unique(own_rows, return_inverse=True)
    wanted = rounding_marks(long, items, width, distinct)[of_distinct]
    left = np.arange(len(places))
    for size in _SMALLER:
        offered = rounding_marks(size, items, width)
        found = np.isin(wanted[left], offered)
        yield from _fill(left[found], wanted[left[found]], offered, size)
        left = left[~found]
        if len(left) == 0:
            return
    yield from _fill(left, own_rows[left], np.arange(long), long)


def _fill(
    queries: IntArray, wanted: IntArray, offered: IntArray, size: int
) -> Iterator[tuple[IntArray, IntArray, int]]:
    """Arrays of that size in which each query stands at a row that offers what it wants."""
    if len(queries) == 0:
        return
    marks, group = np.unique(wanted, return_inverse=True)
    needed = np.bincount(group)
    rows = [np.flatnonzero(offered == mark) for mark in marks]
    order = np.argsort(group, kind="stable")
    rank = np.concatenate([np.arange(n) for n in needed])
    row = np.concatenate([r[np.arange(n) % len(r)] for n, r in zip(needed, rows, strict=True)])
    array = rank // np.repeat([len(r) for r in rows], needed)
    for number in range(int(array.max()) + 1):
        here = array == number
        yield queries[order[here]], row[here], size
