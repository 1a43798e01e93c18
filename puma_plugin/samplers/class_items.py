"""Groups of m items of a class: every item of the class comes up before any repeats."""

import numpy as np

from puma_plugin.utils.arrays import IntArray, UintArray


class ClassItems:
    """Gives m distinct items of a class for its 0th, 1st, 2nd ... use, as a function of the seed.

    A class of n items is gone through in ceil(n / m) uses, each time in a new order. If m does not divide n, the last
    of them repeats items of the use before it, since it must hold m. All classes of a batch are served at once.

    Args:
        classes: (N,) contiguous class numbers.
        m: items per use, at most the size of the smallest class.
        seed: names the orders.
    """

    def __init__(self, classes: IntArray, m: int, seed: int) -> None:
        self.m = m
        self.sizes = np.bincount(classes)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._items = np.argsort(classes, kind="stable").astype(np.int32)
        self._order = self._items.copy()
        self._pass = np.full(len(self.sizes), -1, np.int64)
        self._uses_per_pass = -(-self.sizes // m)
        # Mixed, since pass p is added to it: pass 1 of seed 0 is not to be pass 0 of seed 1.
        self._seed = _mix(np.array([seed], np.uint64))

    def groups(self, classes: IntArray, uses: IntArray) -> IntArray:
        """Item positions (K, m) of K distinct classes, each at its given use."""
        passes, chunk = np.divmod(uses, self._uses_per_pass[classes])
        stale = self._pass[classes] != passes
        if stale.any():
            self._reorder(classes[stale], passes[stale])
        first = np.minimum(chunk * self.m, self.sizes[classes] - self.m)
        places = (self._starts[classes] + first)[:, None] + np.arange(self.m)
        return self._order[places].astype(np.int64)

    def _reorder(self, classes: IntArray, passes: IntArray) -> None:
        """Shuffle these classes for these passes: sort their items by a hash of (seed, pass, item)."""
        sizes = self.sizes[classes]
        which = np.repeat(np.arange(len(classes)), sizes)
        within = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = self._starts[classes][which] + within
        items = self._items[places]
        hashed = _mix(_mix(passes.astype(np.uint64) + self._seed)[which] + items.astype(np.uint64))
        # The class in the high bits keeps the classes apart in one sort.
        order = np.argsort((which.astype(np.uint64) << np.uint64(40)) | (hashed >> np.uint64(24)), kind="stable")
        self._order[places] = items[order]
        self._pass[classes] = passes


def _mix(values: UintArray) -> UintArray:
    """The finaliser of splitmix64: a bijection of 64-bit words that looks random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
