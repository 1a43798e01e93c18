"""Every retrieval metric of a set of embeddings over several distributions, from one pass."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from puma_plugin.evaluation.arguments import as_column, check_block_size, check_ks, names_by_number
from puma_plugin.evaluation.galleries import Galleries
from puma_plugin.evaluation.ordering import merge_neighbours
from puma_plugin.evaluation.paper_code import overlapping_classes, own_numbers, position_keys
from puma_plugin.evaluation.result import RetrievalResult
from puma_plugin.evaluation.scores import QueryScores
from puma_plugin.evaluation.scoring import Scoring, blocks_by_depth
from puma_plugin.evaluation.search import as_unit_rows
from puma_plugin.utils.arrays import BoolArray, IntArray
from puma_plugin.utils.labels import split_labels

Protocol = Literal["honest", "paper-code"]
PROTOCOLS: tuple[Protocol, ...] = ("honest", "paper-code")
# Queries and neighbours of a reference search at once: it costs the less, the more queries it gets.
_REFERENCE_QUERIES = 1 << 13
_REFERENCE_NEIGHBOURS = 1 << 22


def evaluate_retrieval(
    embeddings: Any,
    labels: Any,
    item_ids: Any = None,
    distribution_names: Sequence[str] | None = None,
    query_mask: Any = None,
    gallery_mask: Any = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    distribution_ks: Mapping[str, Sequence[int]] | None = None,
    protocol: Protocol = "honest",
    local_classes: Any = None,
    class_names: Sequence[str] | None = None,
    block_size: int = 4096,
    progress: bool = False,
) -> RetrievalResult:
    """Evaluate retrieval jointly over all distributions and within each (metrics of arXiv 2309.08944, section 4).

    Each query is compared once with every gallery item: its own distribution's and the others' are searched apart, and
    the joint order is the merged one. Neighbours are ranked by squared L2 distance of the unit rows in float32, which
    is what pml's AccuracyCalculator ranks by; at equal distance the item that stands earlier in the gallery comes
    first. Where pml's AccuracyCalculator defines the same metric, the values agree: where two distances differ by no
    more than rounding, and the scores hang on their order, the query is searched again as pml does it, by faiss on the
    CPU, which then rounds as it does for pml.

    Args:
        embeddings: (N, D) float array or tensor, L2-normalised here (rows that are so already stay bit for bit).
        labels: (N, 2) integers: class (distinct over all distributions) and distribution.
        item_ids: (N,) integers; a query never matches a gallery item of its own id. Default: the position.
        distribution_names: name of distribution 0, 1, ...; default "distribution 0", ...
        query_mask: (N,) bool, which items are queries; default all.
        gallery_mask: (N,) bool, which items can be found; default all.
        ks: the k of the recalls.
        distribution_ks: further k for one distribution's own gallery, such as {"SOP": (1, 10, 100, 1000)}.
        protocol: "honest": a hit needs the same distribution and class, the query itself is excluded by item id, and
            queries without a positive are left out of the means. "paper-code" reproduces what the authors' published
            code counts: a hit needs the same class *number*, and numbers of distributions overlap (see
            :func:`puma_plugin.evaluation.paper_code.overlapping_classes`); query i of a distribution can never match
            gallery item i of it, whatever that is; queries without a positive count as misses, and R is the size of
            the class in the gallery, the query included.
        local_classes: (N,) class numbers within each item's own data set for "paper-code", training classes counted
            before the test classes; default: as many training as test classes, and test classes from 0 where queries
            are not the gallery (In-shop).
        class_names: name of class 0, 1, ..., for the sums by class; default: the numbers.
        block_size: queries searched at once; bounds the memory.
        progress: show a progress bar.

    Raises:
        ValueError: wrong shapes, labels of one column, a class in two distributions, empty queries or gallery,
            ids that are no integers, too few names.
        TypeError: ks that are no integers, or distribution_names that are no list.
        ImportError: faiss is not installed (names the extra to install).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}")
    ks = check_ks(ks, "ks")
    check_block_size(block_size)
    rows = as_unit_rows(embeddings, "embeddings")
    numbers, classes, distributions = split_labels(labels, len(rows))
    if class_names is not None and numbers[-1] >= len(class_names):
        raise ValueError(f"labels name class {numbers[-1]}, but there are {len(class_names)} class_names")
    ids = as_column(item_ids, len(rows), "item_ids", np.int64, np.arange(len(rows)))
    everything = np.ones(len(rows), dtype=np.bool_)
    asked = as_column(query_mask, len(rows), "query_mask", np.bool_, everything)
    offered = as_column(gallery_mask, len(rows), "gallery_mask", np.bool_, everything)
    queries, gallery = np.flatnonzero(asked), np.flatnonzero(offered)
    if len(queries) == 0 or len(gallery) == 0:
        raise ValueError(f"there must be queries and gallery items, got {len(queries)} and {len(gallery)}")
    present = np.unique(distributions)
    names = names_by_number(distribution_names, present)
    members = {names[d]: d for d in present.tolist()}
    own_ks = _own_ks(ks, distribution_ks, list(members))

    joint_classes, query_keys, gallery_keys = classes, ids, ids
    if protocol == "paper-code":
        apart = np.unique(distributions[asked != offered]).tolist()
        local = as_column(
            local_classes, len(rows), "local_classes", np.int64, own_numbers(classes, distributions, apart)
        )
        joint_classes = np.unique(overlapping_classes(distributions, local, apart), return_inverse=True)[1]
        query_keys = position_keys(distributions, queries)
        gallery_keys = position_keys(distributions, gallery)

    def scores(classes: IntArray, ks: Sequence[int]) -> QueryScores:
        held, positives = _count_positives(classes, queries, gallery, query_keys, gallery_keys)
        if protocol == "paper-code":
            return QueryScores(held, np.ones(len(queries), dtype=np.bool_), ks)
        return QueryScores(positives, positives > 0, ks)

    own = scores(classes, sorted({k for each in own_ks.values() for k in each}))
    joint = scores(joint_classes, ks)
    lone = _count_positives(classes, queries, gallery, query_keys, gallery_keys)[1] == 0
    own_distribution = distributions[queries]
    leaked = np.zeros(len(queries), dtype=np.bool_)
    depths = np.minimum(np.maximum(np.maximum(own.relevant, joint.relevant), ks[-1]), len(gallery))
    own_column, joint_column = np.append(classes, -1), np.append(joint_classes, -1)
    scoring = Scoring(queries, distributions, own_column, joint_column, depths, own, joint, leaked, rows.shape[1])
    galleries = Galleries(rows, query_keys, gallery_keys, gallery, distributions)
    open_joint: list[IntArray] = []
    with tqdm(total=len(queries), desc="search", disable=not progress, leave=False) as bar:
        for name, d in members.items():
            asking = np.flatnonzero(own_distribution == d)
            near_part, far_part = galleries.part(d), galleries.part(d, outside=True)
            if len(asking) == 0 or near_part.size == 0:
                raise ValueError(
                    f"distribution {name!r} has {len(asking)} queries and {near_part.size} gallery items; it needs "
                    "at least one of each: mend query_mask/gallery_mask or leave the distribution out"
                )
            undecided: tuple[list[IntArray], list[IntArray]] = ([], [])  # in the own gallery and in the joint one
            for block in blocks_by_depth(asking, depths, block_size):
                found = near_part.find(queries[block], int(depths[block].max()) + 1)
                undecided[0].append(block[scoring.score_own(block, found, near_part, own_ks[name][-1])])
                # What is farther than that many of the own distribution is not among the nearest of all.
                last = np.take_along_axis(found[0], depths[block][:, None], axis=1)[:, 0]
                others = far_part.find(queries[block], found[0].shape[1], np.nextafter(last, np.float32(np.inf)))
                merged = merge_neighbours(found, others, found[0].shape[1])
                undecided[1].append(block[scoring.score_joint(block, merged)])
                bar.update(len(block))
            # Whose scores may be due to rounding is searched again in the way that decides.
            open_joint += undecided[1]
            open_own = np.concatenate(undecided[0])
            if len(open_own):
                near_part = galleries.as_pml(queries[asking], d)
            for block in _reference_blocks(open_own, depths):
                found = near_part.find(queries[block], int(depths[block].max()) + 1)
                scoring.score_own(block, found, near_part, own_ks[name][-1])
        again = np.concatenate(open_joint)
        if len(again):
            whole = galleries.as_pml(queries)
            for block in _reference_blocks(again, depths):
                scoring.score_joint(block, whole.find(queries[block], int(depths[block].max()) + 1))

    mine = {name: own_distribution == d for name, d in members.items()}
    return RetrievalResult(
        ks=ks,
        protocol=protocol,
        unified=joint.means(ks),
        unified_per_distribution={name: joint.means(ks, mask) for name, mask in mine.items()},
        per_distribution={name: own.means(own_ks[name], mask) for name, mask in mine.items()},
        leak=float(leaked.mean()),
        leak_per_distribution={name: float(leaked[mask].mean()) for name, mask in mine.items()},
        num_queries={name: int(mask.sum()) for name, mask in mine.items()},
        num_gallery={name: int((distributions[gallery] == d).sum()) for name, d in members.items()},
        num_lone={name: int(lone[mask].sum()) for name, mask in mine.items()},
        per_class={
            name: _class_sums(own, joint, leaked, classes[queries], mask, own_ks[name], ks, numbers, class_names)
            for name, mask in mine.items()
        },
    )


def _reference_blocks(queries: IntArray, depths: IntArray) -> list[IntArray]:
    return blocks_by_depth(queries, depths, _REFERENCE_QUERIES, _REFERENCE_QUERIES, _REFERENCE_NEIGHBOURS)


def _own_ks(
    ks: tuple[int, ...], further: Mapping[str, Sequence[int]] | None, names: list[str]
) -> dict[str, tuple[int, ...]]:
    """The k of each distribution's own gallery."""
    further = further or {}
    if unknown := sorted(set(further) - set(names)):
        raise ValueError(f"distribution_ks names {unknown}, but the distributions are {names}")
    checked = {name: check_ks(values, f"distribution_ks[{name!r}]") for name, values in further.items()}
    return {name: check_ks((*ks, *checked.get(name, ())), "ks") for name in names}


def _count_positives(
    classes: IntArray, queries: IntArray, gallery: IntArray, query_keys: IntArray, gallery_keys: IntArray
) -> tuple[IntArray, IntArray]:
    """Gallery items of each query's class: all, and with the query's own key left out."""
    width = int(classes.max()) + 1
    counts = np.bincount(classes[gallery], minlength=width)[classes[queries]].astype(np.int64)
    keys = np.unique(np.concatenate([gallery_keys[gallery], query_keys[queries]]), return_inverse=True)[1]
    # One number per (key, class): how often does the gallery hold the query's own?
    held, times = np.unique(keys[: len(gallery)] * width + classes[gallery], return_counts=True)
    asked = keys[len(gallery) :] * width + classes[queries]
    place = np.minimum(np.searchsorted(held, asked), len(held) - 1)
    return counts, counts - np.where(held[place] == asked, times[place], 0)


def _class_sums(
    own: QueryScores,
    joint: QueryScores,
    leaked: BoolArray,
    classes: IntArray,
    mask: BoolArray,
    own_ks: tuple[int, ...],
    ks: tuple[int, ...],
    numbers: IntArray,
    names: Sequence[str] | None,
) -> dict[str, Any]:
    """See ``RetrievalResult.per_class``."""
    present, counted = np.unique(classes[mask], return_inverse=True)
    group = np.full(len(classes), -1, dtype=np.int64)
    group[mask] = counted
    return {
        "classes": [str(number) if names is None else names[number] for number in numbers[present].tolist()],
        "queries": np.bincount(counted, minlength=len(present)).tolist(),
        "leaks": np.bincount(counted, weights=leaked[mask], minlength=len(present)).astype(int).tolist(),
        "own": own.sums(own_ks, group, len(present)),
        "unified": joint.sums(ks, group, len(present)),
    }
