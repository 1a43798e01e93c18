"""Exact nearest neighbours by faiss, with the query itself excluded by item id and a stated order of ties."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from puma_plugin.evaluation.arguments import as_column, check_block_size

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# faiss computes the distances of fewer queries than this in another way, which rounds differently.
_SAME_ROUNDING_FROM = 20
# More neighbours than this are not offered by faiss on a GPU.
_GPU_MAX_K = 2048
# Rows whose squared length is 1 to this are unit rows already: normalising again would only change their rounding.
_UNIT = 4 * np.finfo(np.float32).eps


def load_faiss() -> Any:
    """Import faiss; ImportError with the extra to install where it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "exact nearest-neighbour search needs faiss, which is not installed: "
            'pip install "puma_plugin[faiss-cpu]" (or "puma_plugin[faiss-gpu]", which also searches on the CPU)'
        ) from error
    return faiss


def as_unit_rows(values: Any, name: str) -> FloatArray:
    """Return ``values`` (N, D) as contiguous float32 rows of length 1.

    Rows that have this length already are kept bit for bit; zero rows stay zero.

    Raises ValueError for another shape and for rows that are not finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().to("cpu").float().numpy()
    rows = np.asarray(values, dtype=np.float32, order="C")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, D) with D >= 1, got {rows.shape}")
    squares = np.einsum("nd,nd->n", rows, rows)
    bad = np.flatnonzero(~np.isfinite(squares))
    bad = bad[~np.isfinite(rows[bad]).all(axis=1)]  # a row of huge numbers is finite though its square is not
    if len(bad):
        raise ValueError(
            f"{name} has {len(bad)} rows with NaN or infinity, the first at {bad[:5].tolist()}: the model that "
            "embedded them has diverged or was run in a precision that overflows"
        )
    other = np.flatnonzero(~(np.abs(squares - 1) <= _UNIT))
    if len(other) == 0:
        return rows
    rows = rows.copy()
    chosen = rows[other].astype(np.float64)
    norms = np.linalg.norm(chosen, axis=1, keepdims=True)
    rows[other] = np.divide(chosen, norms, out=chosen, where=norms > 0)
    return rows


def nearest_neighbours(
    queries: Any,
    gallery: Any,
    k: int,
    query_ids: Any = None,
    gallery_ids: Any = None,
    *,
    block_size: int = 4096,
) -> tuple[FloatArray, IntArray]:
    """Find the ``k`` gallery rows most similar (cosine) to each query; exact, in blocks of queries.

    Args:
        queries: (Q, D) float array or tensor; rows are L2-normalised here.
        gallery: (G, D), likewise.
        k: how many neighbours, >= 1.
        query_ids: (Q,) item ids; a gallery row with the query's id is never its neighbour. None: nothing is excluded.
        gallery_ids: (G,) item ids; given exactly if ``query_ids`` is.
        block_size: queries searched at once.

    Returns:
        similarities (Q, k) float32, descending, and gallery positions (Q, k) int64. Rows of equal distance come in
        ascending gallery position. Where fewer than k rows are left, -inf and -1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    check_block_size(block_size)
    query_rows, gallery_rows = as_unit_rows(queries, "queries"), as_unit_rows(gallery, "gallery")
    if query_rows.shape[1] != gallery_rows.shape[1]:
        raise ValueError(
            f"queries and gallery must have the same width, got {query_rows.shape[1]} and {gallery_rows.shape[1]}"
        )
    if (query_ids is None) != (gallery_ids is None):
        raise ValueError("give query_ids and gallery_ids together: they exclude a query from its own neighbours")
    ids = as_column(query_ids, len(query_rows), "query_ids", np.int64, None)
    searcher = Searcher(gallery_rows, as_column(gallery_ids, len(gallery_rows), "gallery_ids", np.int64, None))
    similarities = np.empty((len(query_rows), k), dtype=np.float32)
    indices = np.empty((len(query_rows), k), dtype=np.int64)
    lengths = np.einsum("nd,nd->n", gallery_rows, gallery_rows)
    for start in range(0, len(query_rows), block_size):
        rows = slice(start, start + block_size)
        distances, indices[rows] = searcher.search(query_rows[rows], k, None if ids is None else ids[rows])
        own = np.einsum("nd,nd->n", query_rows[rows], query_rows[rows])
        similarities[rows] = (own[:, None] + lengths[indices[rows]] - distances) / 2
    return similarities, indices


class Searcher:
    """A gallery of unit rows, ready to be searched, on all GPUs that faiss sees (each holds a share) or on the CPU.

    Distances are those of faiss' flat L2 index: squared, float32. For unit rows their order is that of the cosine, and
    pml's AccuracyCalculator ranks by the same. Equal distances are ordered by position in the gallery: on the CPU the
    L2 index does this itself (the inner product index reverses them), otherwise see :func:`settle_ties`.
    """

    def __init__(self, gallery: FloatArray, ids: IntArray | None) -> None:
        if ids is not None and len(ids) != len(gallery):
            raise ValueError(f"gallery_ids has {len(ids)} entries for {len(gallery)} gallery rows")
        self.size = len(gallery)
        self.ids = ids
        # An id that occurs several times costs a query that many places.
        self.copies = 0 if ids is None or len(ids) == 0 else int(np.unique(ids, return_counts=True)[1].max())
        self.index = load_faiss().IndexFlatL2(gallery.shape[1])
        self.index.add(gallery)
        self.gpu_index = _on_gpus(self.index)

    def search(self, queries: FloatArray, k: int, query_ids: IntArray | None) -> tuple[FloatArray, IntArray]:
        """Squared distances and positions (Q, k) of the nearest rows, those with the query's own id left out.

        Where fewer than k rows are left, the distance is infinite and the position -1.
        """
        wanted = min(k + (self.copies if query_ids is not None else 0), self.size)
        if wanted == 0 or len(queries) == 0:
            return np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        asked = queries
        if len(queries) < _SAME_ROUNDING_FROM:
            asked = np.resize(queries, (_SAME_ROUNDING_FROM, queries.shape[1]))
        if self.gpu_index is not None and wanted < min(_GPU_MAX_K, self.size):
            distances, indices = settle_ties(self.gpu_index, self.index, asked, wanted)
        else:
            distances, indices = self.index.search(asked, wanted)
        distances, indices = distances[: len(queries)], indices[: len(queries)]
        if query_ids is not None:
            assert self.ids is not None
            own = self.ids[indices] == query_ids[:, None]
            # A stable sort of the flags moves the query's own rows to the end and keeps the order of the others.
            order = np.argsort(own, axis=1, kind="stable")[:, :k]
            indices = np.take_along_axis(np.where(own, -1, indices), order, axis=1)
            distances = np.take_along_axis(np.where(own, np.float32(np.inf), distances), order, axis=1)
        missing = max(k - indices.shape[1], 0)
        if missing:
            indices = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
            distances = np.pad(distances, ((0, 0), (0, missing)), constant_values=np.inf)
        return distances[:, :k], indices[:, :k]


def settle_ties(index: Any, reference: Any, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
    """Search an index that leaves the order of equal distances open, and order them by position.

    One neighbour more is asked for. If its distance equals that of the k-th, it is open which of the equals were found;
    such queries are asked again of ``reference``, an index that orders equals by position.

    Args:
        index, reference: faiss indices of the same rows, more than k.
        queries: (Q, D).
        k: how many neighbours.
    """
    distances, indices = index.search(queries, k + 1)
    order = np.lexsort((indices, distances), axis=-1)
    distances, indices = np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)
    open_ = np.flatnonzero(distances[:, k] == distances[:, k - 1])
    distances, indices = distances[:, :k], indices[:, :k]
    if len(open_):
        distances[open_], indices[open_] = reference.search(queries[open_], k)
    return distances, indices


def merge_neighbours(
    first: tuple[FloatArray, IntArray], second: tuple[FloatArray, IntArray], k: int
) -> tuple[FloatArray, IntArray]:
    """The k nearest of two lists (distances, positions) of the same queries, ties by position; the lists are sorted."""
    distances = np.concatenate([first[0], second[0]], axis=1)
    indices = np.concatenate([first[1], second[1]], axis=1)
    # The stable sort merges two sorted runs in linear time, but leaves equals of the first list in front.
    order = np.argsort(distances, axis=1, kind="stable")
    ranked = np.take_along_axis(distances, order, axis=1)
    equal = ((ranked[:, 1:] == ranked[:, :-1]) & np.isfinite(ranked[:, 1:])).any(axis=1)
    for row in np.flatnonzero(equal):
        order[row] = np.lexsort((indices[row], distances[row]))
    return ranked[:, :k], np.take_along_axis(indices, order[:, :k], axis=1)


@lru_cache(maxsize=1)
def _gpu_resources() -> list[Any]:
    """Scratch memory of each GPU that this faiss can use, made once; empty where it was built for the CPU only."""
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        return []
    return [faiss.StandardGpuResources() for _ in range(faiss.get_num_gpus())]


def _on_gpus(index: Any) -> Any:
    """A copy of a flat index on the GPUs, each with a share of the rows; None without GPUs or rows."""
    resources = _gpu_resources()
    if not resources or index.ntotal < len(resources):
        return None
    faiss = load_faiss()
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    return faiss.index_cpu_to_gpu_multiple_py(resources, index, options)
