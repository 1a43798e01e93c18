"""Every retrieval metric of a set of embeddings over several distributions, from one pass."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from puma_plugin.evaluation.result import RetrievalResult
from puma_plugin.evaluation.search import FloatArray, IntArray, Searcher, as_unit_rows

BoolArray = npt.NDArray[np.bool_]
Protocol = Literal["honest", "paper-code"]
PROTOCOLS: tuple[Protocol, ...] = ("honest", "paper-code")


def evaluate_retrieval(
    embeddings: Any,
    labels: Any,
    item_ids: Any = None,
    distribution_names: Sequence[str] | None = None,
    query_mask: Any = None,
    gallery_mask: Any = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    protocol: Protocol = "honest",
    local_classes: Any = None,
    block_size: int = 4096,
) -> RetrievalResult:
    """Evaluate retrieval jointly over all distributions and within each (metrics of arXiv 2309.08944, section 4).

    Neighbours are ranked by cosine similarity in float32; at equal similarity the item that stands earlier in the
    gallery comes first. Where pml's AccuracyCalculator defines the same metric, the values agree.

    Args:
        embeddings: (N, D) float array or tensor, L2-normalised here.
        labels: (N, 2) integers: class (distinct over all distributions) and distribution.
        item_ids: (N,) integers; a query never matches a gallery item of its own id. Default: the position.
        distribution_names: name of distribution 0, 1, ...; default "distribution 0", ...
        query_mask: (N,) bool, which items are queries; default all.
        gallery_mask: (N,) bool, which items can be found; default all.
        ks: the k of the recalls.
        protocol: "honest": a hit needs the same distribution and class, and the query itself is excluded by item id.
            "paper-code" reproduces what the authors' published code counts: a hit needs the same class *number*, where
            every distribution counts its classes by itself, so that hits in a wrong distribution count; and query i
            of a distribution can never match gallery item i of it, whatever that is.
        local_classes: (N,) class numbers for "paper-code"; default: counted from 0 within each distribution.
        block_size: queries searched at once; bounds the memory.

    Raises:
        ValueError: wrong shapes, labels of one column, a class in two distributions, empty queries or gallery.
        ImportError: faiss is not installed (names the extra to install).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}")
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1:
        raise ValueError(f"ks must hold integers >= 1, got {ks}")
    rows = as_unit_rows(embeddings, "embeddings")
    classes, distributions = _split_labels(labels, len(rows))
    ids = _column(item_ids, len(rows), "item_ids", np.int64, np.arange(len(rows)))
    queries = np.flatnonzero(_column(query_mask, len(rows), "query_mask", np.bool_, np.ones(len(rows), bool)))
    gallery = np.flatnonzero(_column(gallery_mask, len(rows), "gallery_mask", np.bool_, np.ones(len(rows), bool)))
    if len(queries) == 0 or len(gallery) == 0:
        raise ValueError(f"there must be queries and gallery items, got {len(queries)} and {len(gallery)}")
    present = np.unique(distributions)
    names = _names(distribution_names, present)

    query_keys = gallery_keys = ids
    if protocol == "paper-code":
        classes = _column(local_classes, len(rows), "local_classes", np.int64, _count_classes(classes, distributions))
        query_keys = _positions(distributions, queries)
        gallery_keys = _positions(distributions, gallery)

    def scope(query_index: IntArray, gallery_index: IntArray) -> "_Scope":
        return _Scope(rows, classes, query_index, gallery_index, query_keys, gallery_keys, ks, block_size)

    members = {names[d]: d for d in present.tolist()}
    joint = scope(queries, gallery)
    own_distribution = distributions[queries]
    nearest = joint.nearest
    leaked = (nearest >= 0) & (distributions[nearest] != own_distribution)
    per_distribution, joint_parts, leaks, num_queries, num_gallery, num_lone = {}, {}, {}, {}, {}, {}
    for name, d in members.items():
        mine = own_distribution == d
        its_queries, its_gallery = queries[mine], gallery[distributions[gallery] == d]
        if len(its_queries) == 0 or len(its_gallery) == 0:
            raise ValueError(
                f"distribution {name!r} has {len(its_queries)} queries and {len(its_gallery)} gallery items; it needs "
                "at least one of each: mend query_mask/gallery_mask or leave the distribution out"
            )
        part = scope(its_queries, its_gallery)
        per_distribution[name] = part.metrics()
        joint_parts[name] = joint.metrics(mine)
        leaks[name] = float(leaked[mine].mean())
        num_queries[name], num_gallery[name] = len(its_queries), len(its_gallery)
        num_lone[name] = int((part.positives == 0).sum())
    return RetrievalResult(
        ks=ks,
        protocol=protocol,
        unified=joint.metrics(),
        unified_per_distribution=joint_parts,
        per_distribution=per_distribution,
        leak=float(leaked.mean()),
        leak_per_distribution=leaks,
        num_queries=num_queries,
        num_gallery=num_gallery,
        num_lone=num_lone,
    )


class _Scope:
    """One set of queries searched in one gallery: per-query values of every metric."""

    def __init__(
        self,
        rows: FloatArray,
        classes: IntArray,
        queries: IntArray,
        gallery: IntArray,
        query_keys: IntArray,
        gallery_keys: IntArray,
        ks: tuple[int, ...],
        block_size: int,
    ) -> None:
        self.ks = ks
        self.positives = _count_positives(classes, queries, gallery, query_keys, gallery_keys)
        self.recalls = np.zeros((len(ks), len(queries)), dtype=bool)
        self.r_precision = np.zeros(len(queries))
        self.map_at_r = np.zeros(len(queries))
        self.nearest = np.full(len(queries), -1, dtype=np.int64)
        searcher = Searcher(rows[gallery], gallery_keys[gallery])
        for depth, block in _by_depth(np.maximum(self.positives, ks[-1]), block_size):
            asked = queries[block]
            _, found = searcher.search(rows[asked], depth, query_keys[asked])
            self.nearest[block] = np.where(found[:, 0] >= 0, gallery[found[:, 0]], -1)
            hits = (classes[gallery[found]] == classes[asked][:, None]) & (found >= 0)
            self._score(block, hits)

    def _score(self, block: IntArray, hits: BoolArray) -> None:
        for row, k in enumerate(self.ks):
            self.recalls[row, block] = hits[:, :k].any(axis=1)
        positives = self.positives[block]
        rank = np.arange(1, hits.shape[1] + 1)
        hits &= rank <= positives[:, None]
        divisor = np.maximum(positives, 1)
        self.r_precision[block] = hits.sum(axis=1) / divisor
        precision = np.cumsum(hits, axis=1) / rank
        self.map_at_r[block] = (precision * hits).sum(axis=1) / divisor

    def metrics(self, mask: BoolArray | None = None) -> dict[str, float]:
        """Means over the queries (of the mask) that have a positive; NaN if none has."""
        keep = self.positives > 0
        if mask is not None:
            keep &= mask
        values = {f"recall_at_{k}": row for k, row in zip(self.ks, self.recalls, strict=True)}
        values |= {"map_at_r": self.map_at_r, "r_precision": self.r_precision}
        if not keep.any():
            return dict.fromkeys(values, float("nan"))
        return {name: float(value[keep].mean()) for name, value in values.items()}


def _by_depth(depths: IntArray, block_size: int) -> list[tuple[int, IntArray]]:
    """Group queries of like search depth, so that one class of many items does not make every search deep."""
    order = np.argsort(depths, kind="stable")
    rounded = 1 << np.ceil(np.log2(depths[order])).astype(np.int64)
    groups = np.split(order, np.flatnonzero(np.diff(rounded)) + 1) if len(order) else []
    blocks = []
    for group in groups:
        for start in range(0, len(group), block_size):
            block = group[start : start + block_size]
            blocks.append((int(depths[block].max()), block))
    return blocks


def _count_positives(
    classes: IntArray, queries: IntArray, gallery: IntArray, query_keys: IntArray, gallery_keys: IntArray
) -> IntArray:
    """Gallery items of each query's class, those with the query's own key left out."""
    width = int(classes.max()) + 1
    counts = np.bincount(classes[gallery], minlength=width)[classes[queries]].astype(np.int64)
    keys = np.unique(np.concatenate([gallery_keys[gallery], query_keys[queries]]), return_inverse=True)[1]
    # One number per (key, class): how often does the gallery hold the query's own?
    held, times = np.unique(keys[: len(gallery)] * width + classes[gallery], return_counts=True)
    asked = keys[len(gallery) :] * width + classes[queries]
    place = np.minimum(np.searchsorted(held, asked), len(held) - 1)
    return counts - np.where(held[place] == asked, times[place], 0)


def _split_labels(labels: Any, length: int) -> tuple[IntArray, IntArray]:
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


def _column(values: Any, length: int, name: str, dtype: Any, default: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values is None:
        return default
    array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    if array.shape != (length,) or (dtype is np.bool_ and array.dtype != np.bool_):
        raise ValueError(f"{name} must be {np.dtype(dtype).name} of shape ({length},), got {array.dtype} {array.shape}")
    return array.astype(dtype)


def _names(names: Sequence[str] | None, present: IntArray) -> dict[int, str]:
    if names is None:
        return {d: f"distribution {d}" for d in present.tolist()}
    if present.max() >= len(names):
        raise ValueError(f"labels name distribution {present.max()}, but there are {len(names)} distribution_names")
    if len(set(names)) != len(names):
        raise ValueError(f"distribution_names must be distinct, got {list(names)}")
    return dict(enumerate(names))


def _count_classes(classes: IntArray, distributions: IntArray) -> IntArray:
    """Number the classes of each distribution from 0."""
    local = np.empty_like(classes)
    for d in np.unique(distributions):
        mine = distributions == d
        local[mine] = np.unique(classes[mine], return_inverse=True)[1]
    return local


def _positions(distributions: IntArray, chosen: IntArray) -> IntArray:
    """Key of the i-th chosen item of each distribution: equal for query i and gallery item i, distinct otherwise."""
    keys = np.full(len(distributions), -1, dtype=np.int64)
    for d in np.unique(distributions[chosen]).tolist():
        mine = chosen[distributions[chosen] == d]
        keys[mine] = (d << 40) + np.arange(len(mine))
    return keys
