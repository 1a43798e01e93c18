"""Where pml's AccuracyCalculator defines a metric, ours is the same to 1e-12, also where rounding orders them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from puma_plugin.evaluation import evaluate_retrieval
from puma_plugin.evaluation.search import as_unit_rows

NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")  # of pml
METRICS = ("recall_at_1", "r_precision", "map_at_r")  # ours


def check_against_pml(rows: np.ndarray, labels: np.ndarray, **options: Any) -> None:
    """Where pml's calculator defines a metric, ours is the same."""
    result = evaluate_retrieval(rows, labels, **options)
    calculator = AccuracyCalculator(include=NAMES, k="max_bin_count", device=torch.device("cpu"))
    galleries = {"unified": np.ones(len(rows), bool)}
    galleries |= {f"distribution {d}": labels[:, 1] == d for d in np.unique(labels[:, 1])}
    for gallery, mask in galleries.items():
        ours = result.unified if gallery == "unified" else result.per_distribution[gallery]
        if math.isnan(ours["recall_at_1"]):
            continue
        expected = calculator.get_accuracy(torch.from_numpy(rows[mask]), torch.from_numpy(labels[mask, 0]))
        for name, metric in zip(NAMES, METRICS, strict=True):
            assert ours[metric] == pytest.approx(expected[name], abs=1e-12), (gallery, name)


def spread_classes(sizes: list[int], width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around class centres, and labels (class, distribution) of three distributions."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(sizes)), sizes)
    rows = rng.standard_normal((len(sizes), width))[classes] + 0.8 * rng.standard_normal((len(classes), width))
    return as_unit_rows(rows, "rows"), np.stack([classes, classes % 3], axis=1)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_a_few_classes(precision: torch.dtype) -> None:
    # Not of length 1, as a model gives them: both normalise.
    rows, labels = spread_classes([4, 2, 9, 3, 3, 5], 12, 7)
    embeddings = 3 * torch.from_numpy(rows).to(precision)
    unified = evaluate_retrieval(embeddings, labels).unified
    unit = torch.nn.functional.normalize(embeddings.float())
    expected = AccuracyCalculator(include=NAMES).get_accuracy(unit, torch.from_numpy(labels[:, 0]))
    for name, metric in zip(NAMES, METRICS, strict=True):
        assert unified[metric] == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("copies", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_thousands_of_items(copies: int) -> None:
    # Among so many neighbours some distances differ in their last bits only. faiss asks 4,096 queries at once: here it
    # takes two blocks and more.
    sizes = [17] * 120 * copies + [90] * 12 * copies + [3] * 800 * copies
    check_against_pml(*spread_classes(sizes, 32, 8))


def hard_to_order(kind: str, count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Rows whose distances differ in their last bits, if at all."""
    if kind == "copies":
        rows = rng.standard_normal((max(2, count // 5), width))[rng.integers(0, max(2, count // 5), count)]
    elif kind == "collapsed":
        rows = rng.standard_normal(width) + 1e-4 * rng.standard_normal((count, width))
    elif kind == "one direction":  # rounding errors of equal numbers do not cancel
        rows = np.ones(width) + 1e-3 * rng.standard_normal((count, width))
    else:
        rows = rng.standard_normal((max(2, count // 8), width))[rng.integers(0, max(2, count // 8), count)]
        rows += 1e-5 * rng.standard_normal((count, width))
    rows[rng.integers(0, count, count // 20)] = 0
    return as_unit_rows(rows, "rows")


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(["copies", "collapsed", "one direction", "near copies"]),
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([5, 19, 20, 131, 537, 900]),
    width=st.sampled_from([1, 3, 16, 100, 257, 512, 1000, 2048]),
)
def test_where_rounding_decides_the_order(kind: str, seed: int, count: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    rows, classes = hard_to_order(kind, count, width, rng), rng.integers(0, max(2, count // 6), count)
    labels = np.stack([classes, classes % 2], axis=1)
    if len(np.unique(labels[:, 1])) < 2:
        return
    check_against_pml(rows, labels, block_size=int(rng.choice([50, 4096])))
