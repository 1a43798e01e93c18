"""Which scores hang on the rounding of distances, worked out by hand."""

from typing import Any

import numpy as np
import pytest

from puma_plugin.evaluation.scores import QueryScores
from puma_plugin.evaluation.scoring import Scoring

# The query is item 0. Item 3 is of its class, items 2 and 4 are of the other distribution.
CLASSES, DISTRIBUTIONS = np.array([0, 1, 2, 0, 3, -1]), np.array([0, 0, 1, 0, 1])
CLOSE, APART = 1e-7, 1e-2


def scoring(ks: tuple[int, ...]) -> Scoring:
    own, joint = (QueryScores(np.array([1]), np.array([True]), ks) for _ in range(2))
    leaked, depths = np.zeros(1, bool), np.array([2])
    return Scoring(np.array([0]), DISTRIBUTIONS, CLASSES, CLASSES, depths, own, joint, leaked, 16)


def neighbours(*found: tuple[float, int]) -> tuple[Any, Any]:
    distances, items = zip(*found, strict=True)
    return np.float32([distances]), np.array([items])


@pytest.mark.parametrize(("gap", "open_"), [(CLOSE, True), (APART, False)])
@pytest.mark.parametrize("nearest", [1, 2])
def test_a_leak_hangs_on_which_of_two_close_neighbours_is_nearer(gap: float, open_: bool, nearest: int) -> None:
    # Neither is a hit, so that nothing else hangs on their order.
    one = scoring((1,))
    found = neighbours((0.5, nearest), (0.5 + gap, 3 - nearest), (0.9, 3))
    assert one.score_joint(np.array([0]), found).tolist() == [open_]
    assert one.leaked.tolist() == [nearest == 2]


@pytest.mark.parametrize(("gap", "open_"), [(CLOSE, True), (APART, False)])
def test_a_far_recall_hangs_on_which_of_two_close_neighbours_is_the_last_that_counts(gap: float, open_: bool) -> None:
    class Part:
        size = 4

        def find(self, queries: Any, k: int) -> tuple[Any, Any]:
            assert (queries.tolist(), k) == ([0], 4)
            return neighbours((0.5, 1), (0.6, 2), (0.7, 4), (0.7 + gap, 3))

    one = scoring((1, 3))
    found = neighbours((0.5, 1), (0.6, 2), (0.7, 4))
    assert one.score_own(np.array([0]), found, Part(), 3).tolist() == [open_]  # type: ignore[arg-type]
    assert one.own.recalls[3].tolist() == [False]
