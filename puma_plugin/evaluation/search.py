"""Exact nearest neighbours by faiss, with the query itself excluded by item id and a stated order of ties."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


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
    """Return ``values`` (N, D) as contiguous float32 rows of length 1 (zero rows stay zero).

    Raises ValueError for another shape and for rows that are not finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().to("cpu").float().numpy()
    rows = np.array(values, dtype=np.float32, order="C")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, D) with D >= 1, got {rows.shape}")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"{name} has {len(bad)} rows with NaN or infinity, the first at {bad[:5].tolist()}: the model that "
            "embedded them has diverged or was run in a precision that overflows"
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=rows, where=norms > 0)


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
    query_rows, gallery_rows = as_unit_rows(queries, "queries"), as_unit_rows(gallery, "gallery")
    if query_rows.shape[1] != gallery_rows.shape[1]:
        raise ValueError(
            f"queries and gallery must have the same width, got {query_rows.shape[1]} and {gallery_rows.shape[1]}"
        )
    if (query_ids is None) != (gallery_ids is None):
        raise ValueError("give query_ids and gallery_ids together: they exclude a query from its own neighbours")
    searcher = Searcher(gallery_rows, None if gallery_ids is None else np.asarray(gallery_ids, dtype=np.int64))
    ids = None if query_ids is None else np.asarray(query_ids, dtype=np.int64)
    if ids is not None and len(ids) != len(query_rows):
        raise ValueError(f"query_ids has {len(ids)} entries for {len(query_rows)} queries")
    similarities = np.empty((len(query_rows), k), dtype=np.float32)
    indices = np.empty((len(query_rows), k), dtype=np.int64)
    for start in range(0, len(query_rows), block_size):
        rows = slice(start, start + block_size)
        similarities[rows], indices[rows] = searcher.search(query_rows[rows], k, None if ids is None else ids[rows])
    return similarities, indices


class Searcher:
    """A gallery of unit rows, ready to be searched.

    Uses faiss' flat L2 index: for unit rows the order is that of the inner product, and it is the one of faiss' flat
    indices that orders equal distances by position (the inner product index reverses them).
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
        self.squared_norms = np.einsum("nd,nd->n", gallery, gallery)

    def search(self, queries: FloatArray, k: int, query_ids: IntArray | None) -> tuple[FloatArray, IntArray]:
        """Return similarities and positions (Q, k) of the nearest rows, those with the query's own id left out."""
        wanted = min(k + (self.copies if query_ids is not None else 0), self.size)
        if wanted == 0 or len(queries) == 0:
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        distances, indices = self.index.search(queries, wanted)
        norms = np.einsum("nd,nd->n", queries, queries)
        similarities = (norms[:, None] + self.squared_norms[indices] - distances) / 2
        if query_ids is not None:
            assert self.ids is not None
            own = self.ids[indices] == query_ids[:, None]
            # A stable sort of the flags moves the query's own rows to the end and keeps the order of the others.
            order = np.argsort(own, axis=1, kind="stable")
            indices = np.take_along_axis(np.where(own, -1, indices), order, axis=1)
            similarities = np.take_along_axis(np.where(own, -np.inf, similarities), order, axis=1)
        missing = max(k - indices.shape[1], 0)
        if missing:
            indices = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
            similarities = np.pad(similarities, ((0, 0), (0, missing)), constant_values=-np.inf)
        return similarities[:, :k].astype(np.float32, copy=False), indices[:, :k]
