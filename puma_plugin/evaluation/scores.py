"""The metrics of single queries, from the hits among their neighbours."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from puma_plugin.utils.arrays import BoolArray, IntArray


class QueryScores:
    """Every metric of every query in one kind of gallery; filled block by block.

    Args:
        relevant: (Q,) R of R-precision and MAP@R: the query's positives in the gallery.
        counted: (Q,) bool, the queries that enter the means.
        ks: of the recalls.
    """

    def __init__(self, relevant: IntArray, counted: BoolArray, ks: Sequence[int]) -> None:
        self.relevant = relevant
        self.counted = counted
        self.recalls = {k: np.zeros(len(relevant), dtype=np.bool_) for k in ks}
        self.map_at_r = np.zeros(len(relevant))
        self.r_precision = np.zeros(len(relevant))

    def add(self, block: IntArray, hits: BoolArray) -> None:
        """Score the queries ``block`` whose neighbours, nearest first, are positives where ``hits`` (len(block), K).

        K must reach R of these queries or the end of the gallery. Recalls of a larger k hold for queries with a hit;
        :meth:`add_recalls` settles those of the others.
        """
        self.add_recalls(block, hits)
        relevant = self.relevant[block]
        hits = hits[:, : int(relevant.max(initial=0))]
        rows, columns = np.nonzero(hits & (np.arange(hits.shape[1]) < relevant[:, None]))
        found = np.bincount(rows, minlength=len(block))
        # The n-th hit of a query, at rank `columns + 1`: precision there is n / rank.
        number = np.arange(1, len(rows) + 1) - (np.cumsum(found) - found)[rows]
        divisor = np.maximum(relevant, 1)
        self.r_precision[block] = found / divisor
        self.map_at_r[block] = np.bincount(rows, weights=number / (columns + 1), minlength=len(block)) / divisor

    def add_recalls(self, block: IntArray, hits: BoolArray) -> None:
        """The recalls alone, from as many neighbours as there are columns."""
        for k, recall in self.recalls.items():
            recall[block] = hits[:, :k].any(axis=1)

    def values(self, ks: Sequence[int]) -> dict[str, npt.NDArray[np.generic]]:
        """Metric name -> (Q,) value of each query."""
        recalls = {f"recall_at_{k}": self.recalls[k] for k in ks}
        return {**recalls, "map_at_r": self.map_at_r, "r_precision": self.r_precision}

    def means(self, ks: Sequence[int], mask: BoolArray | None = None) -> dict[str, float]:
        """Means over the counted queries (of the mask); NaN if there is none."""
        keep = self.counted if mask is None else self.counted & mask
        if not keep.any():
            return dict.fromkeys(self.values(ks), float("nan"))
        return {name: float(value[keep].mean()) for name, value in self.values(ks).items()}

    def sums(self, ks: Sequence[int], group: IntArray, groups: int) -> dict[str, list[float]]:
        """Sums over the counted queries of each group, and their number as "counted".

        Args:
            ks: of the recalls.
            group: (Q,) number of each query's group, -1 for none.
            groups: how many there are.
        """
        keep = self.counted & (group >= 0)
        columns = {"counted": np.ones(len(group)), **self.values(ks)}
        return {
            name: np.bincount(group[keep], weights=np.asarray(value, float)[keep], minlength=groups).tolist()
            for name, value in columns.items()
        }
