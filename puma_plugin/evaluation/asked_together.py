"""Some of many queries, laid out so that faiss rounds their distances as if all of them were asked at once.

faiss multiplies blocks of queries with blocks of the gallery. How a product is rounded depends on the shape of the two
blocks and on where the query stands in its own, but not on the other queries beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from puma_plugin.evaluation.ordering import IntArray

# Among more queries than this the exact layout would take longer than it is worth.
MOST_TOGETHER = 1 << 13
# Neighbours that faiss finds at once, at most: bounds the memory.
_MOST_NEIGHBOURS = 1 << 24
# A product of fewer multiplications than this is summed in another order (found by trial with faiss' wheel).
_SMALL_PRODUCT = 1 << 27


@dataclass(frozen=True)
class Among:
    """Which of how many queries are asked.

    Attributes:
        places: (Q,) distinct, of ``total``.
        total: queries that would be asked at once.
    """

    places: IntArray
    total: int

    def layers(self, block: int, products: int, k: int) -> Iterator[tuple[IntArray, IntArray, int]]:
        """Which of the queries to ask next, at which rows of an otherwise empty array, and how many rows that has.

        Up to MOST_TOGETHER queries are rounded exactly as if all were asked. Those of several blocks share an array
        where they stand at different rows of their blocks. Among more queries the array is just so long that products
        are summed in the same order; where a query stands can then still change the last bit of some distances.

        Args:
            block: queries that faiss multiplies at once.
            products: multiplications per query in a block of the gallery.
            k: neighbours wanted of each query. If a block's do not fit into memory, blocks are smaller.
        """
        block = max(1, min(block, _MOST_NEIGHBOURS // k))
        if self.total > MOST_TOGETHER:
            least = min(block, _SMALL_PRODUCT // products + 1)
            for start in range(0, len(self.places), block):
                chosen = np.arange(start, min(start + block, len(self.places)))
                yield chosen, chosen - start, max(len(chosen), least)
            return
        whole = self.total // block * block
        # The last block is shorter. It follows a whole one, if there is any: alone, a few queries are not multiplied.
        first_of_last = min(whole, block)
        rows = np.where(self.places < whole, self.places % block, first_of_last + self.places - whole)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        layer = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
        for number in range(int(layer.max(initial=-1)) + 1):
            chosen = order[layer == number]
            size = first_of_last + self.total - whole if rows[chosen].max() >= first_of_last else block
            yield chosen, rows[chosen], size
