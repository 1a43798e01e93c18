"""Hands samples that were measured in turns to pytest-benchmark, which times one function after another.

pytest-benchmark takes any timer. This one stands still except when the benchmarked function, `ReplayClock.replay`,
moves it on by the next recorded sample: statistics, tables, JSON and comparison of pytest-benchmark then hold for
samples that were interleaved with those of the other contestants, whatever clock they came from.
"""

from collections.abc import Iterable, Iterator
from typing import Any


class ReplayClock:
    """A timer whose time passes only by recorded samples."""

    def __init__(self) -> None:
        self._now = 0.0
        self._samples: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self._now

    def load(self, samples: Iterable[float]) -> None:
        """Start anew with these samples (seconds)."""
        self._samples = iter(samples)

    def rewind(self) -> None:
        """Back to 0 before each round: differences of a growing sum would round the samples."""
        self._now = 0.0

    def replay(self) -> None:
        """Let the next sample pass."""
        self._now += next(self._samples)


CLOCK = ReplayClock()


def replay(benchmark: Any, samples: list[float]) -> None:
    """Record ``samples`` (seconds per call) as the rounds of this benchmark.

    The test has to carry ``@pytest.mark.benchmark(timer=CLOCK)``.
    """
    CLOCK.load(samples)
    benchmark.pedantic(CLOCK.replay, setup=CLOCK.rewind, rounds=len(samples), iterations=1)
