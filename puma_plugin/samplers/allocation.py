"""How many places of each batch a distribution gets."""

import math
from typing import Literal

import numpy as np

from puma_plugin.utils.arrays import Float64Array, IntArray

Balance = Literal["proportional", "uniform"] | float


def rates(sizes: IntArray, balance: Balance) -> Float64Array:
    """Share of each distribution: size ** (1 / T), normalised. "proportional" is T = 1, "uniform" T = infinity.

    Raises:
        TypeError: neither word nor number.
        ValueError: another word, or a temperature that is not positive.
    """
    words = {"proportional": 1.0, "uniform": math.inf}
    try:
        temperature = words.get(balance, math.nan) if isinstance(balance, str) else float(balance)
    except TypeError as error:
        raise TypeError(f'balance must be "proportional", "uniform" or a temperature > 0, got {balance!r}') from error
    if not temperature > 0:
        raise ValueError(f'balance must be "proportional", "uniform" or a temperature > 0, got {balance!r}')
    # Relative to the largest, so that a small temperature does not overflow.
    weights = np.exp((np.log(sizes) - np.log(sizes.max())) / temperature)
    return weights / weights.sum()


class Allocation:
    """Places per batch and distribution: each count is its expectation rounded up or down, and they add up.

    Systematic sampling with one random offset per batch, so that the long-run rate is exact. With ``whole`` a batch
    belongs to one distribution, drawn independently by the rates.

    Args:
        rates: (D,) shares that add up to 1.
        places: of a batch.
        batches: per epoch.
        whole: one distribution per batch.
        key: integers that name this sequence.
    """

    def __init__(self, rates: Float64Array, places: int, batches: int, whole: bool, key: tuple[int, ...]) -> None:
        self.places, self.batches, self.whole, self.key = places, batches, whole, key
        edges = np.concatenate([[0.0], np.cumsum(rates)])
        edges[-1] = 1.0
        # Off the last digits: an expectation of 4 must never become 4 + 1e-16 and be rounded up to 5.
        self._edges = np.round(edges * places, 9)
        self._before: list[IntArray] = [np.zeros(len(rates), np.int64)]

    def most(self) -> IntArray:
        """Largest count that each distribution can get in a batch."""
        expected: Float64Array = self._edges[1:] - self._edges[:-1]
        if self.whole:
            return np.where(expected > 0, self.places, 0).astype(np.int64)
        return np.ceil(np.round(expected, 8)).astype(np.int64)

    def counts(self, epoch: int) -> IntArray:
        """(batches, D) places of each batch of an epoch."""
        # Offsets on a grid of 2^-20 keep the sums below exact.
        offsets = np.random.default_rng((*self.key, epoch)).integers(0, 1 << 20, self.batches) / (1 << 20)
        if self.whole:
            inner = self._edges[1:-1] / self.places
            chosen = np.searchsorted(inner, offsets, side="right")
            return np.where(chosen[:, None] == np.arange(len(self._edges) - 1), self.places, 0)
        borders = np.floor(self._edges + offsets[:, None]).astype(np.int64)
        return borders[:, 1:] - borders[:, :-1]

    def before(self, epoch: int) -> IntArray:
        """(D,) places given to each distribution in all epochs before this one."""
        while len(self._before) <= epoch:
            self._before.append(self._before[-1] + self.counts(len(self._before) - 1).sum(axis=0))
        return self._before[epoch]
