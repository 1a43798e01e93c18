"""A million items of 20,000 classes: time and memory, beside pml's sampler and a plain shuffle."""

import time
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from pytorch_metric_learning.samplers import MPerClassSampler
from torch.utils.data import BatchSampler, RandomSampler

from puma_plugin.samplers import MultiDistributionSampler

ITEMS, CLASSES, BATCH = 1_000_000, 20_000, 512
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labels() -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    classes = np.sort(generator.integers(0, CLASSES, ITEMS))
    home = np.sort(generator.choice(8, CLASSES, p=[0.5, 0.2, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01]))
    return np.stack([classes, home[classes]], axis=1)


def measure(build: Callable[[], Iterable[list[int]]]) -> tuple[float, float]:
    """Seconds of CPU until the first batch, and per batch of the next 1000 (median of ten hundreds)."""
    started = time.process_time()
    batches = iter(build())
    next(batches)
    first = time.process_time() - started
    hundreds = []
    for _ in range(10):
        started = time.process_time()
        assert all(len(batch) == BATCH for batch in islice(batches, 100))
        hundreds.append((time.process_time() - started) / 100)
    return first, float(np.median(hundreds))


def test_time_beside_other_samplers(labels: np.ndarray[Any, Any]) -> None:
    one = labels[:, 0]
    contestants = {
        "plain": lambda: MultiDistributionSampler(labels, BATCH),
        "uniform": lambda: MultiDistributionSampler(labels, BATCH, balance="uniform"),
        "m=4, T=2": lambda: MultiDistributionSampler(labels, BATCH, m=4, balance=2.0),
        "torch shuffle": lambda: BatchSampler(RandomSampler(one), BATCH, drop_last=True),
        "pml MPerClassSampler": lambda: BatchSampler(
            MPerClassSampler(one, 4, BATCH, length_before_new_iter=ITEMS), BATCH, drop_last=True
        ),
    }
    figures = {name: measure(build) for name, build in contestants.items()}
    for name, (first, each) in figures.items():
        print(f"{name:>22}: first batch after {first:6.2f} s, then {1000 * each:6.3f} ms per batch")
    for name in ("plain", "uniform", "m=4, T=2"):
        first, each = figures[name]
        assert first < 2, name
        assert each < 1e-3, name


@pytest.mark.parametrize("arguments", [{}, {"balance": "uniform"}, {"m": 4, "balance": 2.0}])
def test_memory(labels: np.ndarray[Any, Any], arguments: dict[str, Any]) -> None:
    tracemalloc.start()
    batches = iter(MultiDistributionSampler(labels, BATCH, **arguments))
    for _ in range(50):
        next(batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
