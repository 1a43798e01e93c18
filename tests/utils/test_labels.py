"""Labels of items: read once, refused in words."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from puma_plugin.utils.labels import split_labels


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda rows: torch.tensor(rows, dtype=torch.int16)])
def test_classes_are_told_apart_from_their_positions(kind: Any) -> None:
    numbers, classes, distributions = split_labels(kind([[70, 1], [5, 0], [70, 1], [9, 1]]), 4)
    assert numbers.tolist() == [5, 9, 70]
    assert classes.tolist() == [2, 0, 2, 1]
    assert distributions.tolist() == [1, 0, 1, 1]
    assert {values.dtype for values in (numbers, classes, distributions)} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        # Of three classes the middle one is in both distributions.
        ([[3, 0], [5, 0], [5, 1], [8, 1]], "class 5 occurs in more than one distribution"),
        ([[3, 0], [-1, 0]], "must not be negative, got -1"),
        ([[3, 0], [4, -2]], "must not be negative, got -2"),
        ([[0.0, 0.0]], r"integers of shape \((N|1), 2\), .*got float64"),
        ([0, 1], r"integers of shape \((N|2), 2\), .*of shape \(2,\)"),
        ([[0], [1]], r"integers of shape \((N|2), 2\), .*of shape \(2, 1\)"),
        (np.empty((0, 2), int), "labels are empty"),
    ],
)
def test_refused_labels(labels: Any, message: str) -> None:
    for length in (None, len(labels)):
        with pytest.raises(ValueError, match=message):
            split_labels(labels, length)


def test_as_many_as_there_are_items() -> None:
    for length in (0, 1, 3):
        with pytest.raises(ValueError, match=rf"of shape \({length}, 2\), .*of shape \(2, 2\)"):
            split_labels([[0, 0], [1, 0]], length)
    with pytest.raises(ValueError, match=r"of shape \(N, 2\), .*of shape \(\)"):
        split_labels(3)


def test_a_dataset_is_no_labels() -> None:
    with pytest.raises(TypeError, match=r"got a SimpleNamespace: pass its \.labels"):
        split_labels(SimpleNamespace(labels=[[0, 0]]))
