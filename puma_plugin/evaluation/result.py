"""What one evaluation found."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from puma_plugin.utils import json_ready

_SHORT = {"map_at_r": "MAP@R", "r_precision": "R-prec"}


@dataclass(frozen=True)
class RetrievalResult:
    """All metrics of one embedding pass over several distributions.

    Metrics are named ``recall_at_1``, ``recall_at_2``, ... (share of queries with a hit among their k nearest),
    ``map_at_r`` and ``r_precision`` (R = number of the query's positives in the gallery), all in [0, 1] or NaN where no
    query has a positive. Queries without any positive in the gallery ("lone") are left out of the means and counted.

    Attributes:
        ks: the k of the recalls.
        protocol: "honest" or "paper-code".
        unified: all queries against the one joint gallery; a hit needs the same distribution and the same class.
        unified_per_distribution: the same search, averaged over the queries of each distribution.
        per_distribution: each distribution's queries against its own gallery.
        harmonic_mean, arithmetic_mean, worst, worst_distribution: over ``per_distribution``; the harmonic mean is 0 if
            any distribution is 0, all are NaN if any is NaN.
        leak: share of the queries whose nearest neighbour in the joint gallery is of another distribution.
        leak_per_distribution: the same by distribution of the query.
        num_queries, num_gallery, num_lone: counts by distribution.
        per_class: distribution -> sums over the queries of each class, in lists as long as "classes": "classes" (names
            or numbers), "queries", "leaks", and under "own" and "unified" each metric's sum and the number of queries
            that it is over ("counted"). From these alone :mod:`puma_plugin.evaluation.bootstrap` makes intervals and
            compares two results.
    """

    ks: tuple[int, ...]
    protocol: str
    unified: dict[str, float]
    unified_per_distribution: dict[str, dict[str, float]]
    per_distribution: dict[str, dict[str, float]]
    leak: float
    leak_per_distribution: dict[str, float]
    num_queries: dict[str, int]
    num_gallery: dict[str, int]
    num_lone: dict[str, int]
    per_class: dict[str, dict[str, Any]]
    harmonic_mean: dict[str, float] = field(init=False)
    arithmetic_mean: dict[str, float] = field(init=False)
    worst: dict[str, float] = field(init=False)
    worst_distribution: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        harmonic, arithmetic, worst, worst_name = {}, {}, {}, {}
        for metric in self.unified:
            values = {name: metrics[metric] for name, metrics in self.per_distribution.items()}
            harmonic[metric] = harmonic_mean(list(values.values()))
            arithmetic[metric] = sum(values.values()) / len(values)
            # An undefined distribution makes the worst undefined too, wherever it stands.
            worst_name[metric] = min(values, key=lambda name: -math.inf if math.isnan(values[name]) else values[name])
            worst[metric] = values[worst_name[metric]]
        for name, value in zip(
            ("harmonic_mean", "arithmetic_mean", "worst", "worst_distribution"),
            (harmonic, arithmetic, worst, worst_name),
            strict=True,
        ):
            object.__setattr__(self, name, value)

    def to_dict(self, per_class: bool = False) -> dict[str, Any]:
        """All fields as plain JSON types. JSON knows no NaN: None stands in its place.

        Args:
            per_class: with the sums by class, which intervals and comparisons need (about 100 bytes per class and k).
        """
        content = asdict(self)
        if not per_class:
            del content["per_class"]
        return json_ready(content)

    def table(self, *metrics: str, joint: bool = True) -> str:
        """A fixed-width table in percent: a row for each distribution, mean and gallery, and the leak.

        Args:
            metrics: its columns, with a heading if there are several; R@1 if none is named.
            joint: with what compares items of different distributions, the unified gallery and the leak.

        Raises:
            ValueError: for a metric that not every distribution has.
        """
        metrics = metrics or ("recall_at_1",)
        for metric in metrics:
            if metric not in self.unified:
                raise ValueError(f"metric must be one of {sorted(self.unified)}, got {metric!r}")
        values = {
            **self.per_distribution,
            "harmonic mean": self.harmonic_mean,
            "arithmetic mean": self.arithmetic_mean,
            "worst": self.worst,
            **({"unified": self.unified} if joint else {}),
        }
        rows = [(name, [own[metric] for metric in metrics]) for name, own in values.items()]
        rows += [("leak", [self.leak])] if joint else []
        width = max(len(name) for name, _ in rows)
        heading = [f"{'':<{width}}" + "".join(f"  {short_name(metric):>6}" for metric in metrics)]
        return "\n".join(
            (heading if len(metrics) > 1 else [])
            + [f"{name:<{width}}" + "".join(f"  {100 * value:6.2f}" for value in cells) for name, cells in rows]
        )


def short_name(metric: str) -> str:
    """What tables call a metric: "R@4" for "recall_at_4"."""
    return _SHORT.get(metric, metric.replace("recall_at_", "R@"))


def harmonic_mean(values: list[float]) -> float:
    """Harmonic mean; NaN if any value is NaN, else 0 if any is 0."""
    if any(math.isnan(value) for value in values):
        return math.nan
    if any(value == 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)
