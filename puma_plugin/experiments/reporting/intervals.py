"""Confidence intervals for figures that were measured over data seeds and training seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats


@dataclass(frozen=True)
class IntervalMethod:
    """What an interval is.

    Attributes:
        name: in a few words.
        details: what follows on these in a text that has room for it.
    """

    name: str
    details: str

    @property
    def text(self) -> str:
        """Name and details."""
        return self.name + self.details


INTERVAL_METHODS = {
    "data_seed": IntervalMethod(
        "95 % t-interval over the means of the data seeds",
        " (degrees of freedom: data seeds - 1). Training seeds of one data seed share their images and are averaged "
        "first; counting them as independent would make the interval too narrow.",
    ),
    "seed": IntervalMethod(
        "95 % t-interval over the training seeds",
        " (degrees of freedom: training seeds - 1). All runs share their images, so it says how much a run varies, not "
        "how much other images or classes would change.",
    ),
    "class": IntervalMethod(
        "95 % bootstrap interval over the test classes",
        ", which says how much the figure depends on the classes that were asked for, not on the training run.",
    ),
}
"""What the intervals are, by what they count as independent."""


_CONFIDENCE = 0.95  # as all texts about the intervals say


def clustered_interval(values: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """The t-interval of a mean whose runs come in clusters.

    Args:
        values: data seed -> one value per training seed. Clusters weigh alike, whatever their number of runs.

    Returns:
        `mean`, and the bounds `low` and `high`: None where a single data seed gives no spread to judge by.

    Raises:
        ValueError: without any value.
    """
    means = [math.fsum(runs) / len(runs) for runs in values.values() if len(runs) > 0]
    if not means:
        raise ValueError("values holds no run; give at least one value for one data seed")
    count = len(means)
    mean = math.fsum(means) / count
    if count == 1:
        return {"mean": mean, "low": None, "high": None}
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in means) / (count - 1))
    half_width = float(stats.t.ppf(0.5 + _CONFIDENCE / 2.0, count - 1)) * deviation / math.sqrt(count)
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def paired_interval(first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """The interval of ``first - second``, paired by data seed (each side averaged over its training seeds first).

    Pairing removes what a data seed does to both methods alike, so small differences can be resolved.

    Args:
        first, second: data seed -> one value per training seed.

    Returns:
        As :func:`clustered_interval`.

    Raises:
        ValueError: if no data seed is common to both.
    """
    common = sorted(set(first) & set(second))
    if not common:
        raise ValueError("first and second have no data seed in common; run both on the same ones")
    return clustered_interval(
        {
            seed: [math.fsum(first[seed]) / len(first[seed]) - math.fsum(second[seed]) / len(second[seed])]
            for seed in common
        }
    )


def excludes_zero(interval: Mapping[str, Any]) -> bool:
    """Whether an interval lies on one side of zero (False without bounds).

    One without width says that all data seeds differ by the same amount, not that there is no chance in it.
    """
    low, high = interval["low"], interval["high"]
    return low is not None and (low > 0.0 or high < 0.0) and low < high
