"""From the records of single runs to rows with intervals, curves, and sentences that the figures carry."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

from puma_plugin.experiments.contestants.methods import Method
from puma_plugin.experiments.reporting.intervals import clustered_interval, excludes_zero, paired_interval
from puma_plugin.experiments.reporting.tables import COLUMNS

Record = Mapping[str, Any]
# What intervals count as independent: data seeds, or training seeds where all runs share their images.
Unit = Literal["data_seed", "seed"]
# So many differences that are not resolved get a sentence each; more share one.
_MOST_SENTENCES = 8
HEADLINES = (*COLUMNS, "arithmetic")
EXPLANATION = (
    "In percent. Harmonic: harmonic mean over the distributions of R@1, each within its own gallery. Unified: R@1 of "
    "all queries in the one joint gallery, where a hit must be of the same class of the same distribution. Worst: the "
    "worst distribution's R@1. Leak: queries whose nearest neighbour in the joint gallery is of another distribution "
    "(less is better). Seconds: training, evaluation left out. The weights of the loss are not counted."
)
"""What the columns of the main table are."""


def flat_scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """The headline figures (fractions) of one evaluation.

    Args:
        result: `RetrievalResult.to_dict()`, possibly :func:`~puma_plugin.experiments.running.separate.without_joint`.
    """
    metric = "recall_at_1"
    return {
        "harmonic": result["harmonic_mean"][metric],
        "arithmetic": result["arithmetic_mean"][metric],
        "worst": result["worst"][metric],
        "unified": None if result["unified"] is None else result["unified"][metric],
        "leak": result["leak"],
        "per_distribution": {name: values[metric] for name, values in result["per_distribution"].items()},
    }


def bootstrapped(row: dict[str, Any], intervals: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """The row of a single evaluation with bootstrap bounds, which a single run gives no other.

    Args:
        row: as :func:`method_rows` makes it.
        intervals: of that evaluation, named as by :func:`puma_plugin.evaluation.bootstrap_intervals`, as dictionaries.
    """
    places = {name: f"{name}_mean.recall_at_1" for name in ("harmonic", "arithmetic")}
    places |= {name: f"{name}.recall_at_1" for name in ("unified", "worst")} | {"leak": "leak"}

    def bounded(figure: dict[str, Any] | None, place: str) -> dict[str, Any] | None:
        own = intervals.get(place)
        return figure if figure is None or own is None else {**figure, "low": own["low"], "high": own["high"]}

    return {
        **row,
        "scores": {name: bounded(figure, places[name]) for name, figure in row["scores"].items()},
        "per_distribution": {
            name: bounded(figure, f"per_distribution.{name}.recall_at_1")
            for name, figure in row["per_distribution"].items()
        },
    }


def _clusters(records: Iterable[Record], pick: Any, unit: Unit) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for record in records:
        values.setdefault(record[unit], []).append(pick(record["scores"]))
    return values


def _interval(records: Sequence[Record], pick: Any, unit: Unit) -> dict[str, Any] | None:
    if any(pick(record["scores"]) is None for record in records):
        return None
    return clustered_interval(_clusters(records, pick, unit))


def method_rows(records: Sequence[Record], methods: Sequence[Method], unit: Unit = "data_seed") -> list[dict[str, Any]]:
    """One row per method that has records, with intervals over its runs."""
    rows = []
    for method in methods:
        own = [record for record in records if record["method"] == method.key]
        if not own:
            continue
        names = own[0]["scores"]["per_distribution"]
        rows.append(
            {
                "key": method.key,
                "label": method.label,
                "note": method.note,
                "trainable": own[0]["trainable"],
                "seconds": sum(record["seconds"] for record in own) / len(own),
                "runs": len(own),
                "scores": {name: _interval(own, lambda scores, name=name: scores[name], unit) for name in HEADLINES},
                "per_distribution": {
                    name: _interval(own, lambda scores, name=name: scores["per_distribution"][name], unit)
                    for name in names
                },
            }
        )
    return rows


def curves(records: Sequence[Record], methods: Sequence[Method]) -> dict[str, list[dict[str, float]]]:
    """Label -> R@1 on held-out training classes per epoch in percent: mean and range over the runs."""
    found: dict[str, list[dict[str, float]]] = {}
    for method in methods:
        own = [record for record in records if record["method"] == method.key and record.get("validation")]
        by_epoch: dict[float, list[float]] = {}
        for record in own:
            for point in record["validation"]:
                by_epoch.setdefault(point["epoch"], []).append(100.0 * point["harmonic"])
        if len(by_epoch) > 1:
            found[method.label] = [
                {"epoch": epoch, "mean": sum(values) / len(values), "low": min(values), "high": max(values)}
                for epoch, values in sorted(by_epoch.items())
            ]
    return found


def differences(
    records: Sequence[Record], methods: Sequence[Method], reference: str = "puma", unit: Unit = "data_seed"
) -> dict[str, Any]:
    """Method -> interval of `reference - method` in harmonic R@1, paired by data seed (or training seed)."""
    scores = {
        method.key: _clusters(
            (record for record in records if record["method"] == method.key), lambda values: values["harmonic"], unit
        )
        for method in methods
    }
    if not scores.get(reference):
        return {}
    if unit == "seed":
        # What is not trained runs once and is the same for every training seed.
        seeds = sorted({seed for values in scores.values() for seed in values})
        for method in methods:
            if not method.trained and scores[method.key]:
                (values,) = scores[method.key].values()
                scores[method.key] = dict.fromkeys(seeds, values)
    return {
        key: paired_interval(scores[reference], values) for key, values in scores.items() if key != reference and values
    }


def _sentence(reference: str, phrase: str, interval: Mapping[str, Any]) -> str:
    mean = 100 * interval["mean"]
    way = "above" if mean >= 0 else "below"
    # "PUMA's", but not "frozen features's".
    own = f"Harmonic R@1 of {reference}" if " " in reference else f"{reference}'s harmonic R@1"
    text = f"{own} is {abs(mean):.1f} points {way} {phrase}"
    if interval["low"] is None:
        return f"{text} in this single run; one run does not resolve differences of a point or two."
    low, high = sorted((100 * interval["low"], 100 * interval["high"]))
    why_not = "includes zero" if low <= 0.0 <= high else "has no width"
    verdict = "resolved" if excludes_zero(interval) else f"not resolved: the interval {why_not}"
    return f"{text} (95 % interval of the difference {low:+.1f} to {high:+.1f} points: {verdict})."


def findings(
    rows: Sequence[Mapping[str, Any]],
    gaps: Mapping[str, Mapping[str, Any]],
    methods: Sequence[Method],
    reference: str = "puma",
) -> list[str]:
    """Sentences about the reference against the other methods, each taken from the figures alone."""
    by_key = {row["key"]: row for row in rows}
    phrases = {method.key: method.phrase for method in methods}
    shown = {key: gap for key, gap in gaps.items() if key in by_key}
    open_ = {key: gap for key, gap in shown.items() if gap["low"] is not None and gap["low"] <= 0.0 <= gap["high"]}
    if len(open_) <= _MOST_SENTENCES:
        open_ = {}
    sentences = [_sentence(phrases[reference], phrases[key], gap) for key, gap in shown.items() if key not in open_]
    if open_:
        others = "; ".join(f"{phrases[key]} {100 * gap['mean']:+.1f}" for key, gap in open_.items())
        sentences.append(
            f"Harmonic R@1 of {phrases[reference]} minus that of others, in points, where it is not resolved (the 95 % "
            f"interval includes zero): {others}."
        )
    if all(key in by_key and not by_key[key].get("recorded") for key in ("frozen", "puma", "full")):
        base, own, full = (by_key[key]["scores"]["harmonic"]["mean"] for key in ("frozen", "puma", "full"))
        share = by_key["puma"]["trainable"] / by_key["full"]["trainable"]
        if full > base:
            sentences.append(
                f"Of full fine-tuning's gain over frozen features PUMA reaches "
                f"{100 * (own - base) / (full - base):.0f} % with {100 * share:.1f} % of the trainable weights."
            )
    return sentences


def collapses(records: Sequence[Record], methods: Sequence[Method]) -> list[str]:
    """A sentence per method of whose runs some ended below half of the method's median harmonic R@1.

    Such a run has failed, not come out a little worse; it dominates mean and interval, so it is named.
    """
    sentences = []
    for method in methods:
        scores = [record["scores"]["harmonic"] for record in records if record["method"] == method.key]
        if not scores:
            continue
        typical = median(scores)
        failed = [score for score in scores if score < typical / 2]
        if failed:
            sentences.append(
                f"{method.label}: {len(failed)} of {len(scores)} runs collapsed (harmonic R@1 "
                f"{', '.join(f'{100 * score:.1f}' for score in failed)}; median of all {100 * typical:.1f}). "
                "Mean and interval include them."
            )
    return sentences
