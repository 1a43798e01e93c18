"""Confidence intervals for figures that were measured over data seeds and training seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

INTERVAL_METHODS = {
    "data_seed": "95 % t-interval over the means of the data seeds (degrees of freedom: data seeds - 1). Training "
    "seeds of one data seed share their images and are averaged first; counting them as independent would make the "
    "interval too narrow.",
    "seed": "95 % t-interval over the training seeds (degrees of freedom: training seeds - 1). All runs share their "
    "images, so it says how much a run varies, not how much other images or classes would change.",
    "class": "95 % bootstrap interval over the test classes, which says how much the figure depends on the classes "
    "that were asked for, not on the training run.",
}
"""What the intervals are, by what they count as independent."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence bounds; the bounds are None where a single data seed gives no spread to judge by.

    `data_seeds` counts what is independent; where all runs share one data seed these are the training seeds.
    """

    mean: float
    low: float | None
    high: float | None
    runs: int
    data_seeds: int

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary for metrics.json."""
        return asdict(self)

    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero (False without bounds)."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def clustered_interval(values: Mapping[int, Sequence[float]], confidence: float = 0.95) -> Interval:
    """The t-interval of a mean whose runs come in clusters.

    Args:
        values: data seed -> one value per training seed. Clusters weigh alike, whatever their number of runs.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: without any value, or with a confidence outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; give a number between 0 and 1, such as 0.95")
    clusters = [list(runs) for runs in values.values() if len(runs) > 0]
    if not clusters:
        raise ValueError("values holds no run; give at least one value for one data seed")
    means = [math.fsum(runs) / len(runs) for runs in clusters]
    count = len(means)
    mean = math.fsum(means) / count
    runs_total = sum(len(runs) for runs in clusters)
    if count == 1:
        return Interval(mean, None, None, runs_total, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in means) / (count - 1))
    half_width = float(stats.t.ppf(0.5 + confidence / 2.0, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half_width, mean + half_width, runs_total, count)


def paired_interval(
    first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]], confidence: float = 0.95
) -> Interval:
    """The interval of ``first - second``, paired by data seed (each side averaged over its training seeds first).

    Pairing removes what a data seed does to both methods alike, so small differences can be resolved.

    Args:
        first, second: data seed -> one value per training seed.

    Raises:
        ValueError: if no data seed is common to both.
    """
    common = sorted(set(first) & set(second))
    if not common:
        raise ValueError("first and second have no data seed in common; run both on the same ones")
    means = {
        seed: math.fsum(first[seed]) / len(first[seed]) - math.fsum(second[seed]) / len(second[seed]) for seed in common
    }
    interval = clustered_interval({seed: [value] for seed, value in means.items()}, confidence)
    runs = sum(min(len(first[seed]), len(second[seed])) for seed in common)
    return Interval(interval.mean, interval.low, interval.high, runs, interval.data_seeds)
