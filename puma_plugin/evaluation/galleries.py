"""The joint gallery and its distributions' own, ready to be searched."""

from dataclasses import dataclass

import numpy as np

from puma_plugin.evaluation.asked_together import TogetherSearcher
from puma_plugin.evaluation.ordering import Neighbours
from puma_plugin.evaluation.search import CompiledSearcher, FaissSearcher, searcher_type
from puma_plugin.utils.arrays import Float32Array, IntArray


@dataclass(frozen=True)
class GalleryPart:
    """Some items of the gallery.

    Attributes:
        rows: (N, D) unit rows of all items.
        query_keys: (N,) of the items as queries; a query never finds an item of its own key.
        size: items of this part.
        searcher: of these items.
        asked: (Q,) ascending, all queries of this part, if the searcher needs to know them.
    """

    rows: Float32Array
    query_keys: IntArray
    size: int
    searcher: FaissSearcher | CompiledSearcher
    asked: IntArray | None = None

    def find(self, queries: IntArray, k: int, limits: Float32Array | None = None) -> Neighbours:
        """Squared distances and items (Q, k) nearest to each query; infinity and -1 where fewer are left.

        Items that are not nearer than the query's limit (Q,) may be left out.
        """
        rows, keys = self.rows[queries], self.query_keys[queries]
        if isinstance(self.searcher, TogetherSearcher):
            assert self.asked is not None
            return self.searcher.search_at(np.searchsorted(self.asked, queries), rows, k, keys)
        return self.searcher.search(rows, k, keys, limits)


class Galleries:
    """Parts of a gallery. Queries are items too, and both are named by their position among all items.

    Args:
        rows: (N, D) unit rows of all items.
        query_keys: (N,) of the items as queries.
        gallery_keys: (N,) of the items in the gallery; a query never finds an item of its own key.
        gallery: (G,) ascending, the items in the gallery.
        distributions: (N,)
    """

    def __init__(
        self,
        rows: Float32Array,
        query_keys: IntArray,
        gallery_keys: IntArray,
        gallery: IntArray,
        distributions: IntArray,
    ) -> None:
        self.rows, self.query_keys, self.gallery_keys = rows, query_keys, gallery_keys
        self.gallery, self.distributions = gallery, distributions
        self.searcher_type = searcher_type(len(gallery))
        if self.searcher_type is CompiledSearcher:
            # One for all, in which distributions lie one after the other.
            order = gallery[np.argsort(distributions[gallery], kind="stable")]
            self.ordered = distributions[order]
            ordered_rows = rows if np.array_equal(order, np.arange(len(rows))) else rows[order]
            self.whole = CompiledSearcher(ordered_rows, gallery_keys[order], order)

    def part(self, distribution: int, outside: bool = False) -> GalleryPart:
        """The items of one distribution, or of all others; searched in the fastest way."""
        chosen = (self.distributions[self.gallery] == distribution) ^ outside
        size = int(np.count_nonzero(chosen))
        if self.searcher_type is not CompiledSearcher:
            items = self.gallery[chosen]
            searcher = searcher_type(size)(self.rows[items], self.gallery_keys[items], items)
            return GalleryPart(self.rows, self.query_keys, size, searcher)
        begin, end = np.searchsorted(self.ordered, [distribution, distribution + 1]).tolist()
        return GalleryPart(self.rows, self.query_keys, size, self.whole.part(begin, end, outside))

    def as_pml(self, queries: IntArray, distribution: int | None = None) -> GalleryPart:
        """The items of one distribution, or of all; searched as if all ``queries`` were asked of faiss at once.

        So pml's AccuracyCalculator does it, whose rounding decides.
        """
        items = self.gallery
        if distribution is not None:
            items = items[self.distributions[items] == distribution]
        searcher = TogetherSearcher(self.rows[items], self.gallery_keys[items], items, total=len(queries))
        return GalleryPart(self.rows, self.query_keys, len(items), searcher, queries)
