"""An endless sequence in which everything comes up before anything repeats, and repeats keep their distance."""

import heapq

import numpy as np

from puma_plugin.utils.arrays import IntArray


class SpacedPermutations:
    """Endless random sequence over 0..size-1, made of one permutation ("round") after the other.

    Any ``spacing`` consecutive elements are distinct, also across the border of two rounds. The sequence is a function
    of the key alone: any part of it can be taken at any time. Going forward is cheap, going back starts from round 0.

    Args:
        size: number of elements.
        spacing: at most ``size``.
        key: non-negative integers that name this sequence.
    """

    def __init__(self, size: int, spacing: int, key: tuple[int, ...]) -> None:
        self.size, self.spacing, self.key = size, spacing, key
        self._round = -1
        self._order: IntArray | None = None

    def take(self, start: int, count: int) -> tuple[IntArray, IntArray]:
        """Elements ``start .. start + count - 1`` of the sequence and the round of each; ``count`` <= ``spacing``."""
        elements, rounds = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            number, offset = divmod(start + done, self.size)
            length = min(count - done, self.size - offset)
            elements[done : done + length] = self._permutation(number)[offset : offset + length]
            rounds[done : done + length] = number
            done += length
        return elements, rounds

    def _permutation(self, number: int) -> IntArray:
        if number < self._round:
            self._round, self._order = -1, None
        while self._round < number:
            self._round += 1
            raw = np.random.default_rng((*self.key, self._round)).permutation(self.size)
            self._order = raw if self._order is None else _keep_distance(raw, self._order, self.spacing)
        assert self._order is not None
        return self._order


def _keep_distance(raw: IntArray, previous: IntArray, spacing: int) -> IntArray:
    """Delay the elements of ``raw`` that stood among the last ``spacing - 1`` of the round before, as far as needed."""
    if spacing < 2:
        return raw
    earliest = np.zeros(len(raw), np.int64)
    earliest[previous[-(spacing - 1) :]] = np.arange(1, spacing)
    head = earliest[raw[: spacing - 1]]
    if (head <= np.arange(len(head))).all():
        return raw
    placed: list[int] = []
    waiting: list[tuple[int, int]] = []
    source = 0
    while len(placed) < spacing - 1:
        if waiting and waiting[0][0] <= len(placed):
            placed.append(heapq.heappop(waiting)[1])
            continue
        element = int(raw[source])
        source += 1
        if earliest[element] <= len(placed):
            placed.append(element)
        else:
            heapq.heappush(waiting, (int(earliest[element]), element))
    # From here on nothing is too early any more.
    placed += [element for _, element in sorted(waiting)]
    return np.concatenate([np.array(placed, np.int64), raw[source:]])
