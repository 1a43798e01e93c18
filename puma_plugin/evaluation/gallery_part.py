"""A part of the gallery to be searched, such as one distribution's."""

import numpy as np

from puma_plugin.evaluation.ordering import FloatArray, IntArray, Neighbours
from puma_plugin.evaluation.search import FaissSearcher, make_searcher


class GalleryPart:
    """Items among all; queries are items too, and both are named by their position among all items.

    Args:
        rows: (N, D) unit rows of all items.
        query_keys: (N,) of the items as queries.
        gallery_keys: (N,) of the items in the gallery; a query never finds an item of its own key.
        items: (G,) the gallery items of this part.
        num_queries: how many queries there are in all.
        reference: search by faiss on the CPU, whose rounding decides, instead of the fastest way.
    """

    def __init__(
        self,
        rows: FloatArray,
        query_keys: IntArray,
        gallery_keys: IntArray,
        items: IntArray,
        num_queries: int,
        reference: bool = False,
    ) -> None:
        self.rows, self.query_keys, self.items = rows, query_keys, items
        make = FaissSearcher if reference else make_searcher
        self.searcher = make(rows[items], gallery_keys[items], num_queries)
        self.is_reference = type(self.searcher) is FaissSearcher

    def find(self, queries: IntArray, k: int, limits: FloatArray | None = None) -> Neighbours:
        """Squared distances and items (Q, k) nearest to each query; infinity and -1 where fewer are left.

        Items that are not nearer than the query's limit (Q,) may be left out.
        """
        distances, found = self.searcher.search(self.rows[queries], k, self.query_keys[queries], limits)
        return distances, np.where(found >= 0, self.items[found], -1) if len(self.items) else found
