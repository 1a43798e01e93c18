"""Bootstrap confidence intervals of an evaluation, and of the difference between two.

What is drawn with replacement are the classes of each distribution, with all their queries. Queries of one class look
for the same images and succeed or fail together, so drawing single queries would give intervals that are too narrow.
Every distribution keeps its number of classes: which distributions there are is no matter of chance. The galleries stay
as they are, so an interval tells how much a figure depends on the test classes that were asked for, not on the
training run.

Plain percentile intervals of few classes are too narrow: of five they miss the truth three times as often as they say.
Here n - 1 of n classes are drawn, which makes the variance of the draws that of the figure, and the percentiles are
those of Student's t with as many degrees of freedom in the place of the normal distribution (the expanded percentile
interval of Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from puma_plugin.evaluation.result import RetrievalResult
from puma_plugin.utils.arrays import Float64Array

REPLICATES = 2000
# Of two or three classes many draws repeat one class alone, so that chance looks like certainty.
FEWEST_CLASSES = 5
_MEANS = ("arithmetic_mean", "harmonic_mean", "worst")
# Replicates drawn at once: bounds the memory to this many rows of one number per class.
_CHUNK = 250


@dataclass(frozen=True)
class BootstrapInterval:
    """A figure with its interval; NaN where the figure or a bound is undefined.

    The bounds are undefined wherever a distribution of fewer than ``FEWEST_CLASSES`` classes takes part: from so few it
    cannot be told how much a figure depends on the classes.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; for differences: whether they are outside chance.

        An interval without width says that all classes differ by the same amount, not that there is no chance in it.
        """
        return (self.low > 0 or self.high < 0) and self.low < self.high

    def to_dict(self) -> dict[str, float | None]:
        """As a plain dictionary ready for JSON, which knows no NaN: None instead."""
        return {name: None if np.isnan(number) else number for name, number in asdict(self).items()}


def bootstrap_intervals(
    result: RetrievalResult | Mapping[str, Any],
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, BootstrapInterval]:
    """Intervals of every figure of one evaluation.

    Args:
        result: a RetrievalResult, or its ``to_dict(per_class=True)``.
        confidence: coverage of the intervals, in (0, 1).
        replicates: how often the classes are drawn.
        seed: of the draws; the same seed draws the same classes.

    Returns:
        "unified.recall_at_1", "per_distribution.<name>.<metric>", "harmonic_mean.<metric>", "arithmetic_mean.<metric>",
        "worst.<metric>", "leak" and "leak_per_distribution.<name>" -> interval.

    Raises:
        ValueError: the result has no sums by class, or an argument is out of range.
    """
    _check(confidence, replicates)
    table = _Table(_content(result), "result")
    return _intervals(table.figures(None), _samples(table, replicates, seed), table.classes, confidence)


@dataclass(frozen=True)
class Comparison:
    """Differences ``result - baseline`` of two evaluations.

    Attributes:
        differences: figure (named as by :func:`bootstrap_intervals`) -> difference and interval, of the figures that
            both have.
        confidence: coverage of the intervals.
        paired: whether both evaluations asked for the same classes with the same numbers of queries, so that each draw
            of classes was given to both; what makes a class easy or hard for both then cancels.
    """

    differences: dict[str, BootstrapInterval]
    paired: bool
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries, ready for JSON."""
        differences = {name: i.to_dict() for name, i in self.differences.items()}
        return {"paired": self.paired, "confidence": self.confidence, "differences": differences}

    def text(self) -> str:
        """A line per figure whose difference is outside its interval, and how many are inside."""
        outside = {name: i for name, i in self.differences.items() if i.excludes_zero}
        missing = sum(not np.isfinite(i.value) for i in self.differences.values())
        undefined = sum(not np.isfinite([i.value, i.low, i.high]).all() for i in self.differences.values()) - missing
        kind = "paired by class" if self.paired else "unpaired: the two did not ask for the same classes and queries"
        lines = [f"Differences from the baseline in points, {100 * self.confidence:g} % intervals ({kind}):"]
        width = max((len(name) for name in outside), default=0)
        lines += [
            f"  {name:<{width}}  {100 * i.value:+6.2f}  ({100 * i.low:+.2f} to {100 * i.high:+.2f})"
            for name, i in outside.items()
        ]
        inside = len(self.differences) - len(outside) - undefined - missing
        lines.append(f"  {inside} of {len(self.differences)} figures do not differ by more than chance")
        if outside:
            expected = (1 - self.confidence) * (len(self.differences) - undefined - missing)
            lines.append(f"  (of so many, about {expected:.0f} would lie outside by chance alone)")
        if undefined:
            lines.append(f"  {undefined} figures have no interval: fewer than {FEWEST_CLASSES} classes")
        if missing:
            lines.append(f"  {missing} figures are undefined in one of the two: no query of a distribution counts")
        return "\n".join(lines)


def compare_results(
    result: RetrievalResult | Mapping[str, Any],
    baseline: RetrievalResult | Mapping[str, Any],
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """Which figures of two evaluations differ by more than the choice of test classes explains.

    Args:
        result, baseline: a RetrievalResult, or its ``to_dict(per_class=True)``, of each.
        confidence, replicates, seed: as of :func:`bootstrap_intervals`.

    Raises:
        ValueError: one has no sums by class, they were made under different protocols, or share no distribution.
    """
    _check(confidence, replicates)
    result, baseline = _content(result), _content(baseline)
    first, second = _Table(result, "result"), _Table(baseline, "baseline")
    if result["protocol"] != baseline["protocol"]:
        raise ValueError(
            f"result has protocol {result['protocol']!r} and baseline {baseline['protocol']!r}: their figures mean "
            "different things; evaluate both with the same"
        )
    if not set(first.parts) & set(second.parts):
        raise ValueError(
            f"result has the distributions {list(first.parts)} and baseline {list(second.parts)}: nothing to compare"
        )
    paired = first.asks_the_same_as(second)
    points = first.figures(None), second.figures(None)
    # The same seed draws the same classes for both.
    samples = _samples(first, replicates, seed), _samples(second, replicates, seed if paired else seed + 1)
    # Joint figures and means over distributions mean the same only if the distributions are the same.
    same = set(first.parts) == set(second.parts)
    common = [name for name in points[0] if name in points[1] and (same or name.startswith("per_distribution."))]
    return Comparison(
        _intervals(
            {name: points[0][name] - points[1][name] for name in common},
            {name: samples[0][name] - samples[1][name] for name in common},
            {name: min(count, second.classes.get(name, count)) for name, count in first.classes.items()},
            confidence,
        ),
        paired,
        confidence,
    )


class _Table:
    """The sums by class of one result, as arrays: figures of any weighting of its classes."""

    def __init__(self, result: Mapping[str, Any], name: str) -> None:
        if not result.get("per_class"):
            raise ValueError(
                f"{name} carries no sums by class (per_class), from which intervals are made: give the RetrievalResult "
                "itself, or its to_dict(per_class=True)"
            )
        self.parts = {part: _in_order(sums) for part, sums in result["per_class"].items()}
        # Common to all distributions, hence averaged over them.
        self.metrics = list(result["arithmetic_mean"])
        # Distributions that were embedded by different models have no joint figures.
        self.joint = result["unified"] is not None

    def asks_the_same_as(self, other: "_Table") -> bool:
        """Whether both hold the same classes with the same numbers of queries."""
        return self.parts.keys() == other.parts.keys() and all(
            part["classes"] == other.parts[name]["classes"] and part["queries"] == other.parts[name]["queries"]
            for name, part in self.parts.items()
        )

    @property
    def classes(self) -> dict[str, int]:
        """Distribution -> number of its classes."""
        return {name: len(part["classes"]) for name, part in self.parts.items()}

    def figures(self, weights: Mapping[str, Float64Array] | None) -> dict[str, Float64Array]:
        """Figure -> (B,) values.

        Args:
            weights: distribution -> (B, classes) weight of each class; None for 1 each (B = 1).
        """
        found: dict[str, Float64Array] = {}
        totals: dict[str, Float64Array] = {}
        for name, part in self.parts.items():
            times = np.ones((1, len(part["classes"]))) if weights is None else weights[name]
            own = {key: times @ np.asarray(sums, float) for key, sums in part["own"].items()}
            for metric, values in own.items():
                if metric != "counted":
                    found[f"per_distribution.{name}.{metric}"] = _ratio(values, own["counted"])
            joint = {**part["unified"], "leaks": part["leaks"], "queries": part["queries"]} if self.joint else {}
            mine = {key: times @ np.asarray(sums, float) for key, sums in joint.items()}
            totals = {key: totals.get(key, 0.0) + sums for key, sums in mine.items()}
            if self.joint:
                found[f"leak_per_distribution.{name}"] = _ratio(mine["leaks"], mine["queries"])
        for metric in self.metrics:
            if self.joint:
                found[f"unified.{metric}"] = _ratio(totals[metric], totals["counted"])
            each = np.stack([found[f"per_distribution.{name}.{metric}"] for name in self.parts])
            with np.errstate(divide="ignore"):
                found[f"harmonic_mean.{metric}"] = len(each) / (1 / each).sum(axis=0)
            found[f"arithmetic_mean.{metric}"] = each.mean(axis=0)
            found[f"worst.{metric}"] = each.min(axis=0)
        if self.joint:
            found["leak"] = _ratio(totals["leaks"], totals["queries"])
        return found


def _in_order(part: Mapping[str, Any]) -> dict[str, Any]:
    """The sums by class in the order of the classes' names: two results may list the same classes differently."""
    order = sorted(range(len(part["classes"])), key=lambda index: str(part["classes"][index]))

    def arranged(values: Any) -> Any:
        return (
            {key: arranged(v) for key, v in values.items()}
            if isinstance(values, Mapping)
            else [values[i] for i in order]
        )

    return {name: None if values is None else arranged(values) for name, values in part.items()}


def _content(result: RetrievalResult | Mapping[str, Any]) -> Mapping[str, Any]:
    return result.to_dict(per_class=True) if isinstance(result, RetrievalResult) else result


def _check(confidence: float, replicates: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}; 0.95 is usual")
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}")


def _samples(table: _Table, replicates: int, seed: int) -> dict[str, Float64Array]:
    """Figure -> (replicates,) values."""
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, replicates, _CHUNK):
        size = min(_CHUNK, replicates - start)
        # In the order of the names: two results may list the same distributions differently.
        counts = {name: len(table.parts[name]["classes"]) for name in sorted(table.parts)}
        weights = {name: _weights(classes, size, generator) for name, classes in counts.items()}
        parts.append(table.figures(weights))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _weights(classes: int, size: int, generator: np.random.Generator) -> Float64Array:
    """How often each class was drawn, in draws of one class less, scaled so that a distribution weighs what it did."""
    if classes < FEWEST_CLASSES:
        return np.full((size, classes), np.nan)
    drawn = generator.integers(0, classes, (size, classes - 1)) + classes * np.arange(size)[:, None]
    times = np.bincount(drawn.ravel(), minlength=size * classes).reshape(size, classes)
    return times.astype(np.float64) * (classes / (classes - 1))


def _ratio(sums: Float64Array, counts: Float64Array) -> Float64Array:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _degrees_of_freedom(figure: str, samples: Mapping[str, Float64Array], classes: Mapping[str, int]) -> float:
    """Of a figure of one distribution its classes - 1; of joint figures the sum of these.

    Means over distributions get their variance from those that vary most, often those of fewest classes: the degrees
    of Welch and Satterthwaite.
    """
    own = [
        name for name in classes if figure.startswith((f"per_distribution.{name}.", f"leak_per_distribution.{name}"))
    ]
    if own:  # names may hold dots: the longest is the one that is meant
        return classes[max(own, key=len)] - 1
    mean, _, metric = figure.partition(".")
    parts = {name: samples.get(f"per_distribution.{name}.{metric}") for name in classes}
    if mean in _MEANS and all(values is not None and np.isfinite(values).any() for values in parts.values()):
        shares = {name: float(np.nanvar(values)) for name, values in parts.items() if values is not None}
        if total := sum(shares.values()):
            return total**2 / sum(share**2 / (classes[name] - 1) for name, share in shares.items())
    return sum(classes.values()) - len(classes)


def _intervals(
    values: Mapping[str, Float64Array],
    samples: Mapping[str, Float64Array],
    classes: Mapping[str, int],
    confidence: float,
) -> dict[str, BootstrapInterval]:
    found = {}
    for name, value in values.items():
        # A draw in which no query of a distribution has a positive says nothing about the figure.
        drawn = samples[name][~np.isnan(samples[name])]
        degrees = max(_degrees_of_freedom(name, samples, classes), 1)
        tail = 100 * float(ndtr(stdtrit(degrees, (1 - confidence) / 2)))
        low, high = np.percentile(drawn, [tail, 100 - tail]) if len(drawn) else (np.nan, np.nan)
        found[name] = BootstrapInterval(float(value[0]), float(low), float(high))
    return found
