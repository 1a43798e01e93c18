"""From the neighbours of blocks of queries to their scores, and which of these hang on the rounding of distances."""

from dataclasses import dataclass

import numpy as np

from puma_plugin.evaluation.galleries import GalleryPart
from puma_plugin.evaluation.ordering import Neighbours, rounding_matters
from puma_plugin.evaluation.scores import QueryScores
from puma_plugin.utils.arrays import BoolArray, IntArray

# Neighbours found at once: bounds the memory where searches are deep.
BLOCK_NEIGHBOURS = 1 << 17


@dataclass(frozen=True)
class Scoring:
    """Scores blocks of queries of one distribution; ``own``, ``joint`` and ``leaked`` (Q,) are filled.

    Blocks are numbers of queries. Their neighbours, distances and items (len(block), K), are one more than the largest
    of their ``depths`` (Q,), which tell how many neighbours a query's scores hang on. The result is True for queries
    whose scores may be due to the rounding of the distances. The last of ``classes`` and ``joint_classes`` (N + 1,) is
    the class of item -1, which is none.
    """

    queries: IntArray
    distributions: IntArray
    classes: IntArray
    joint_classes: IntArray
    depths: IntArray
    own: QueryScores
    joint: QueryScores
    leaked: BoolArray
    width: int

    def score_own(self, block: IntArray, found: Neighbours, part: GalleryPart, farthest: int) -> BoolArray:
        """Score in the own gallery. ``part`` is searched for a ``farthest`` k of a recall that is larger than K."""
        items, depths, depth = self.queries[block], self.depths[block], found[0].shape[1] - 1
        hits = hits_of(self.classes, items, found[1])
        self.own.add(block, hits[:, :depth])
        farthest = min(farthest, part.size)
        # Recalls of a larger k than a query's depth hang on as many neighbours as there are here.
        open_ = rounding_matters(found[0], hits, np.maximum(depths, min(farthest, depth)), self.width)
        # A large k is searched for only where no nearer neighbour is a hit.
        deeper = (self.own.relevant[block] > 0) & (farthest > depth)
        missed = np.flatnonzero(deeper & ~hits[:, :depth].any(axis=1))
        step = max(1, BLOCK_NEIGHBOURS // farthest)
        for chosen in (missed[start : start + step] for start in range(0, len(missed), step)):
            distances, far = part.find(items[chosen], farthest + 1)
            hits = hits_of(self.classes, items[chosen], far)
            self.own.add_recalls(block[chosen], hits[:, :farthest])
            open_[chosen] |= rounding_matters(distances, hits, farthest, self.width)
        return open_

    def score_joint(self, block: IntArray, found: Neighbours) -> BoolArray:
        """Score in the joint gallery."""
        items, depths, depth = self.queries[block], self.depths[block], found[0].shape[1] - 1
        hits = hits_of(self.joint_classes, items, found[1])
        self.joint.add(block, hits[:, :depth])
        open_ = rounding_matters(found[0], hits, depths, self.width)
        distances, nearest = found[0][:, :2], found[1][:, :2]
        foreign = (nearest >= 0) & (self.distributions[nearest] != self.distributions[items][:, None])
        self.leaked[block] = foreign[:, 0]
        return open_ | rounding_matters(distances, foreign, 1, self.width)


def hits_of(classes: IntArray, queries: IntArray, found: IntArray) -> BoolArray:
    """Which of the items ``found`` (Q, K) are of their query's class; ``classes`` (N + 1,) as of :class:`Scoring`."""
    hits: BoolArray = classes[found] == classes[queries][:, None]
    return hits


def blocks_by_depth(
    queries: IntArray, depths: IntArray, block_size: int, least: int = 256, neighbours: int = BLOCK_NEIGHBOURS
) -> list[IntArray]:
    """Group queries of like search depth, so that one class of many items does not make every search deep.

    Fewer than ``least`` are searched as deep as the next ones rather than by themselves. A group has no more than
    ``block_size`` queries and ``neighbours`` neighbours.
    """
    if len(queries) == 0:
        return []
    depths = depths[queries]
    order = np.argsort(depths, kind="stable")
    rounded = np.ceil(np.log2(depths[order])).astype(np.int64)
    blocks, start = [], 0
    for stop in [*np.flatnonzero(np.diff(rounded)) + 1, len(order)]:
        if stop - start < least and stop < len(order):
            continue
        group = queries[order[start:stop]]
        size = max(1, min(block_size, neighbours // int(depths[order[stop - 1]])))
        blocks += [group[first : first + size] for first in range(0, len(group), size)]
        start = stop
    return blocks
