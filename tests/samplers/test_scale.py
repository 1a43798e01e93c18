"""A million items of 20,000 classes: time and memory. Beside other samplers: the benchmark suite's "sampling"."""

import time
import tracemalloc
from itertools import islice
from typing import Any

import numpy as np
import pytest

from puma_plugin.samplers import MultiDistributionSampler

ITEMS, CLASSES, BATCH = 1_000_000, 20_000, 512
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"balance": "uniform"}, {"m": 4, "balance": 2.0})
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("arguments", SETTINGS, ids=str)]


@pytest.fixture(scope="module")
def labels() -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    classes = np.sort(generator.integers(0, CLASSES, ITEMS))
    home = np.sort(generator.choice(8, CLASSES, p=[0.5, 0.2, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01]))
    return np.stack([classes, home[classes]], axis=1)


def test_time(labels: np.ndarray[Any, Any], arguments: dict[str, Any]) -> None:
    # Time of this process alone, so that a busy machine does not count.
    started = time.process_time()
    batches = iter(MultiDistributionSampler(labels, BATCH, **arguments))
    next(batches)
    assert time.process_time() - started < 2
    hundreds = []
    for _ in range(10):
        started = time.process_time()
        assert all(len(batch) == BATCH for batch in islice(batches, 100))
        hundreds.append((time.process_time() - started) / 100)
    assert np.median(hundreds) < 1e-3


def test_memory(labels: np.ndarray[Any, Any], arguments: dict[str, Any]) -> None:
    tracemalloc.start()
    batches = iter(MultiDistributionSampler(labels, BATCH, **arguments))
    for _ in range(50):
        next(batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
