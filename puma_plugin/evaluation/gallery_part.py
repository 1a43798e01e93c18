"""A part of the gallery to be searched, such as one distribution's."""

import numpy as np

from puma_plugin.evaluation.asked_together import Among
from puma_plugin.evaluation.ordering import FloatArray, IntArray, Neighbours
from puma_plugin.evaluation.search import FaissSearcher, Searcher, make_searcher


class GalleryPart:
    """Items among all; queries are items too, and both are named by their position among all items.

    Args:
        rows: (N, D) unit rows of all items.
        query_keys: (N,) of the items as queries.
        gallery_keys: (N,) of the items in the gallery; a query never finds an item of its own key.
        items: (G,) the gallery items of this part.
        together: None: search in the fastest way. (Q,) ascending, all queries of this part: search by faiss on the CPU
            as if all of them were asked at once (see :class:`Among`), as pml's AccuracyCalculator does; its rounding
            decides.
    """

    def __init__(
        self,
        rows: FloatArray,
        query_keys: IntArray,
        gallery_keys: IntArray,
        items: IntArray,
        together: IntArray | None = None,
    ) -> None:
        self.rows, self.query_keys, self.size, self.together = rows, query_keys, len(items), together
        self.items = np.append(items, -1)  # the last is position -1: none
        make = make_searcher if together is None else FaissSearcher
        self.searcher: Searcher = make(rows[items], gallery_keys[items])

    def find(self, queries: IntArray, k: int, limits: FloatArray | None = None) -> Neighbours:
        """Squared distances and items (Q, k) nearest to each query; infinity and -1 where fewer are left.

        Items that are not nearer than the query's limit (Q,) may be left out.
        """
        among = None
        if self.together is not None:
            among = Among(np.searchsorted(self.together, queries), len(self.together))
        distances, found = self.searcher.search(self.rows[queries], k, self.query_keys[queries], limits, among)
        return distances, self.items[found]
