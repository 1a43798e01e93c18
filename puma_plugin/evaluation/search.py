"""Exact nearest neighbours, with the query itself excluded by item id and a stated order of ties."""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from puma_plugin.evaluation.arguments import as_column, check_block_size
from puma_plugin.evaluation.ordering import Neighbours, settle_ties
from puma_plugin.ops import loader
from puma_plugin.utils.arrays import Float32Array, IntArray

# More neighbours than this are not offered by faiss on a GPU.
_GPU_MAX_K = 2048
# The compiled search cannot be interrupted; about a second's work of one core where products are of float32.
_PRODUCTS_AT_ONCE = 1 << 35
# Rows whose squared length is 1 to this are unit rows already: normalising again would only change their rounding.
_UNIT = 4 * np.finfo(np.float32).eps


class NonFiniteRowsError(ValueError):
    """Embeddings with NaN or infinity: the model has diverged, or its precision overflows."""


def load_faiss() -> Any:
    """Import faiss; ImportError with the extra to install where it is missing, or why it cannot be loaded."""
    try:
        import faiss
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "faiss":
            raise ImportError(
                "exact nearest-neighbour search needs faiss, which is not installed: "
                'pip install "puma_plugin[faiss-cpu]" (or "puma_plugin[faiss-gpu]", which also searches on the CPU)'
            ) from error
        # Such as the GPU wheel where its CUDA libraries are missing.
        raise ImportError(f"faiss is installed but cannot be loaded: {error}") from error
    return faiss


def as_unit_rows(values: Any, name: str) -> Float32Array:
    """Return ``values`` (N, D) as contiguous, writable float32 rows of length 1.

    Rows that have this length already are kept bit for bit; zero rows stay zero.

    Raises ValueError for another shape, and NonFiniteRowsError, which is one, for rows that are not finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().to("cpu").float().numpy()
    rows = np.require(values, np.float32, ["C", "W"])  # torch warns of memory that must not be written to
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, D) with D >= 1, got {rows.shape}")
    squares = np.einsum("nd,nd->n", rows, rows)
    bad = np.flatnonzero(~np.isfinite(squares))
    bad = bad[~np.isfinite(rows[bad]).all(axis=1)]  # a row of huge numbers is finite though its square is not
    if len(bad):
        raise NonFiniteRowsError(
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
) -> Neighbours:
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
        ascending gallery position. Rows of zeros have the similarity 0 with all. Where fewer than k rows are left, -inf
        and -1.

    Raises:
        ValueError: k or block_size below 1, shapes that do not fit, rows that are not finite, no gallery row, ids that
            are no integers or are given for one side only.
        ImportError: faiss is not installed (names the extra to install).
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
    nowhere = ~gallery_rows.any(axis=1)
    if nowhere.any():
        # By distance they would stand nearer than what is orthogonal; a direction of their own puts them there.
        query_rows, gallery_rows = (np.pad(rows, ((0, 0), (0, 1))) for rows in (query_rows, gallery_rows))
        gallery_rows[nowhere, -1] = 1
    ids = as_column(query_ids, len(query_rows), "query_ids", np.int64, None)
    own_ids = as_column(gallery_ids, len(gallery_rows), "gallery_ids", np.int64, None)
    searcher = searcher_type(len(gallery_rows))(gallery_rows, own_ids)
    similarities = np.empty((len(query_rows), k), dtype=np.float32)
    indices = np.empty((len(query_rows), k), dtype=np.int64)
    if len(gallery_rows) == 0:
        raise ValueError("gallery has no rows, so there is nothing to find; give at least one")
    lengths = np.einsum("nd,nd->n", gallery_rows, gallery_rows)
    for start in range(0, len(query_rows), block_size):
        rows = slice(start, start + block_size)
        distances, indices[rows] = searcher.search(query_rows[rows], k, None if ids is None else ids[rows])
        own = np.einsum("nd,nd->n", query_rows[rows], query_rows[rows])
        similarities[rows] = (own[:, None] + lengths[indices[rows]] - distances) / 2
    return similarities, indices


class FaissSearcher:
    """A gallery of unit rows, searched by faiss on the CPU, by L2 distance as pml's AccuracyCalculator does.

    For unit rows the order is that of the cosine. Equal distances are ordered by position in the gallery: this search
    does so itself (that by inner product reverses them).

    Args:
        gallery: (G, D) unit rows.
        ids: (G,) item ids or None.
        places: (G,) ascending, what stands for a row in results; default: its position.
    """

    def __init__(self, gallery: Float32Array, ids: IntArray | None, places: IntArray | None = None) -> None:
        self.gallery, self.ids = gallery, ids
        # The last is position -1: none.
        self.places = None if places is None else np.append(places, -1)
        # An id that occurs several times costs a query that many places.
        self.copies = 0 if ids is None or len(ids) == 0 else int(np.unique(ids, return_counts=True)[1].max())

    def search(
        self, queries: Float32Array, k: int, query_ids: IntArray | None, limits: Float32Array | None = None
    ) -> Neighbours:
        """Squared distances (Q, k) float32 and places of the nearest rows, those of the query's own id left out.

        Where fewer than k rows are left, the distance is infinite and the place -1. ``limits`` (Q,) allows to leave
        out rows that are not nearer; faiss makes no use of that.
        """
        if len(queries) == 0 or len(self.gallery) == 0:
            return np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        return self.leave_out_own(lambda wanted: self.find(queries, wanted), k, query_ids)

    def leave_out_own(self, find: Callable[[int], Neighbours], k: int, query_ids: IntArray | None) -> Neighbours:
        """What ``find`` (called with a number of neighbours) gives, without rows of the query's own id, k of each."""
        distances, positions = find(min(k + (self.copies if query_ids is not None else 0), len(self.gallery)))
        if query_ids is not None:
            assert self.ids is not None
            own = self.ids[positions] == query_ids[:, None]
            # A stable sort of the flags moves the query's own rows to the end and keeps the order of the others.
            order = np.argsort(own, axis=1, kind="stable")[:, :k]
            positions = np.take_along_axis(np.where(own, -1, positions), order, axis=1)
            distances = np.take_along_axis(np.where(own, np.float32(np.inf), distances), order, axis=1)
        missing = max(k - positions.shape[1], 0)
        if missing:
            positions = np.pad(positions, ((0, 0), (0, missing)), constant_values=-1)
            distances = np.pad(distances, ((0, 0), (0, missing)), constant_values=np.inf)
        positions = positions[:, :k]
        return distances[:, :k], positions if self.places is None else self.places[positions]

    def find(self, queries: Float32Array, k: int) -> Neighbours:
        """Of all rows, at most as many as there are."""
        found: Neighbours = load_faiss().knn(queries, self.gallery, k)
        return found


class FaissGpuSearcher(FaissSearcher):
    """The same on all GPUs that faiss sees, each with a share of the rows. Rounds differently in the last places."""

    def __init__(self, gallery: Float32Array, ids: IntArray | None, places: IntArray | None = None) -> None:
        super().__init__(gallery, ids, places)
        self.index = _sharded_index(gallery)

    def find(self, queries: Float32Array, k: int) -> Neighbours:
        if k >= min(_GPU_MAX_K, len(self.gallery)):
            return super().find(queries, k)
        return settle_ties(self.index.search, super().find, queries, k)


class CompiledSearcher:
    """The same by the compiled operator on the CPU. Rounds differently in the last places.

    A row's distance does not depend on where it stands or what is asked beside it, so equal rows are at equal distance.

    Args:
        gallery: (G, D) unit rows.
        ids: (G,) item ids or None.
        places: (G,) what stands for a row in results, and orders equals; default: its position.
    """

    def __init__(self, gallery: Float32Array, ids: IntArray | None, places: IntArray | None = None) -> None:
        self.ids, self.places = (None if column is None else torch.from_numpy(column) for column in (ids, places))
        self.gallery = torch.from_numpy(gallery)
        self.packed = torch.ops.puma.pack_gallery(self.gallery)
        self.begin, self.end, self.outside = 0, len(gallery), False

    def part(self, begin: int, end: int, outside: bool) -> "CompiledSearcher":
        """Searches only the rows from ``begin`` to ``end``, or only those ``outside``."""
        part = copy.copy(self)
        part.begin, part.end, part.outside = begin, end, outside
        return part

    def search(
        self, queries: Float32Array, k: int, query_ids: IntArray | None, limits: Float32Array | None = None
    ) -> Neighbours:
        """As of :class:`FaissSearcher`; rows that are not nearer than their query's limit are left out."""
        parts = []
        gallery_ids = None if query_ids is None else self.ids
        step = max(256, _PRODUCTS_AT_ONCE // max(1, self.gallery.numel()))
        for start in range(0, max(len(queries), 1), step):
            rows = slice(start, start + step)
            asked, ids, below = (
                None if column is None else torch.from_numpy(column[rows]) for column in (queries, query_ids, limits)
            )
            columns = ids, gallery_ids, below, self.places
            parts.append(
                torch.ops.puma.nearest_neighbours(
                    asked, self.gallery, self.packed, k, *columns, self.begin, self.end, self.outside
                )
            )
        distances, places = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return distances.numpy(), places.numpy()


def searcher_type(items: int) -> type[FaissGpuSearcher] | type[FaissSearcher] | type[CompiledSearcher]:
    """The fastest search there is for so many items: on GPUs, in the compiled operator, or by faiss on the CPU."""
    load_faiss()  # the compiled search could do without it for long: say at the door that it is missing
    if items >= len(_gpus()) > 0:
        return FaissGpuSearcher
    return CompiledSearcher if loader.CPU_LIBRARY.loaded else FaissSearcher


def _sharded_index(gallery: Float32Array) -> Any:
    """faiss' index of the rows, a share on each GPU; where a row stands among all is what it answers."""
    faiss = load_faiss()
    index, options = faiss.IndexFlatL2(gallery.shape[1]), faiss.GpuMultipleClonerOptions()
    index.add(gallery)
    options.shard = True
    devices, resources = zip(*_gpus(), strict=True)
    return faiss.index_cpu_to_gpu_multiple_py(resources, index, options, devices)


@lru_cache(maxsize=1)
def _gpus() -> list[tuple[int, Any]]:
    """Number and scratch memory, made once, of each GPU that this faiss can use; none if it was built for the CPU."""
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        return []
    return [(device, faiss.StandardGpuResources()) for device in range(faiss.get_num_gpus())]
