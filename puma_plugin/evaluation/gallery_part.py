"""A part of the gallery to be searched, such as one distribution's."""

import numpy as np

from puma_plugin.evaluation.asked_together import TogetherSearcher
from puma_plugin.evaluation.ordering import FloatArray, IntArray, Neighbours
from puma_plugin.evaluation.search import make_searcher


class GalleryPart:
    """Items among all; queries are items too, and both are named by their position among all items.

    Args:
        rows: (N, D) unit rows of all items.
        query_keys: (N,) of the items as queries.
        gallery_keys: (N,) of the items in the gallery; a query never finds an item of its own key.
        items: (G,) the gallery items of this part.
        together: None: search in the fastest way. (Q,) ascending, all queries of this part: search by faiss on the CPU
            as if all of them were asked at once, as pml's AccuracyCalculator does; its rounding decides.
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
        gallery, keys = rows[items], gallery_keys[items]
        self.searcher = (
            make_searcher(gallery, keys) if together is None else TogetherSearcher(gallery, keys, len(together))
        )

    def find(self, queries: IntArray, k: int, limits: FloatArray | None = None) -> Neighbours:
        """Squared distances and items (Q, k) nearest to each query; infinity and -1 where fewer are left.

        Items that are not nearer than the query's limit (Q,) may be left out.
        """
        rows, keys = self.rows[queries], self.query_keys[queries]
        if isinstance(self.searcher, TogetherSearcher):
            assert self.together is not None
            found = self.searcher.search_at(np.searchsorted(self.together, queries), rows, k, keys)
        else:
            found = self.searcher.search(rows, k, keys, limits)
        return found[0], self.items[found[1]]
