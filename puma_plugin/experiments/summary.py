"""From the records of single runs to rows with intervals, curves, and sentences that the figures carry."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from puma_plugin.experiments.intervals import Interval, clustered_interval, paired_interval
from puma_plugin.experiments.methods import METHODS

Record = Mapping[str, Any]
HEADLINES = ("harmonic", "unified", "worst", "leak", "arithmetic")


def flat_scores(result: Mapping[str, Any], separate: bool = False) -> dict[str, Any]:
    """The headline figures (fractions) of one evaluation.

    Args:
        result: `RetrievalResult.to_dict()`.
        separate: the distributions were embedded by different models, so joint figures do not exist (None).
    """
    metric = "recall_at_1"
    return {
        "harmonic": result["harmonic_mean"][metric],
        "arithmetic": result["arithmetic_mean"][metric],
        "worst": result["worst"][metric],
        "unified": None if separate else result["unified"][metric],
        "leak": None if separate else result["leak"],
        "per_distribution": {name: values[metric] for name, values in result["per_distribution"].items()},
    }


def _by_data_seed(records: Iterable[Record], pick: Any) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for record in records:
        values.setdefault(record["data_seed"], []).append(pick(record["scores"]))
    return values


def _interval(records: Sequence[Record], pick: Any) -> dict[str, Any] | None:
    if any(pick(record["scores"]) is None for record in records):
        return None
    return clustered_interval(_by_data_seed(records, pick)).to_dict()


def method_rows(records: Sequence[Record], order: Sequence[str]) -> list[dict[str, Any]]:
    """One row per method that has records, with intervals over its runs."""
    rows = []
    for key in order:
        own = [record for record in records if record["method"] == key]
        if not own:
            continue
        names = own[0]["scores"]["per_distribution"]
        rows.append(
            {
                "key": key,
                "label": METHODS[key].label,
                "note": METHODS[key].note,
                "trainable": own[0]["trainable"],
                "seconds": sum(record["seconds"] for record in own) / len(own),
                "runs": len(own),
                "scores": {name: _interval(own, lambda scores, name=name: scores[name]) for name in HEADLINES},
                "per_distribution": {
                    name: _interval(own, lambda scores, name=name: scores["per_distribution"][name]) for name in names
                },
            }
        )
    return rows


def curves(records: Sequence[Record], order: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Label -> R@1 on held-out training classes per epoch in percent: mean and range over the runs."""
    found: dict[str, list[dict[str, float]]] = {}
    for key in order:
        own = [record for record in records if record["method"] == key and record.get("validation")]
        by_epoch: dict[float, list[float]] = {}
        for record in own:
            for point in record["validation"]:
                by_epoch.setdefault(point["epoch"], []).append(100.0 * point["harmonic"])
        if len(by_epoch) > 1:
            found[METHODS[key].label] = [
                {"epoch": epoch, "mean": sum(values) / len(values), "low": min(values), "high": max(values)}
                for epoch, values in sorted(by_epoch.items())
            ]
    return found


def differences(records: Sequence[Record], order: Sequence[str], reference: str = "puma") -> dict[str, Any]:
    """Method -> interval of `reference - method` in harmonic R@1 paired by data seed."""
    scores = {
        key: _by_data_seed((record for record in records if record["method"] == key), lambda values: values["harmonic"])
        for key in order
    }
    if not scores.get(reference):
        return {}
    return {
        key: paired_interval(scores[reference], values).to_dict()
        for key, values in scores.items()
        if key != reference and values
    }


def _sentence(phrase: str, interval: Mapping[str, Any]) -> str:
    mean = 100 * interval["mean"]
    way = "above" if mean >= 0 else "below"
    text = f"PUMA's harmonic R@1 is {abs(mean):.1f} points {way} {phrase}"
    if interval["low"] is None:
        return f"{text} in this single run; one run does not resolve differences of a point or two."
    whole = Interval(**interval)
    low, high = sorted((100 * interval["low"], 100 * interval["high"]))
    verdict = "resolved" if whole.excludes_zero() else "not resolved: the interval includes zero"
    return f"{text} (95 % interval of the difference {low:+.1f} to {high:+.1f} points: {verdict})."


def findings(rows: Sequence[Mapping[str, Any]], gaps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences about PUMA against the other methods, each taken from the figures alone."""
    by_key = {row["key"]: row for row in rows}
    sentences = [_sentence(METHODS[key].phrase, gap) for key, gap in gaps.items() if key in by_key]
    if all(key in by_key and not by_key[key].get("recorded") for key in ("frozen", "puma", "full")):
        base, own, full = (by_key[key]["scores"]["harmonic"]["mean"] for key in ("frozen", "puma", "full"))
        share = by_key["puma"]["trainable"] / by_key["full"]["trainable"]
        if full > base:
            sentences.append(
                f"Of full fine-tuning's gain over frozen features PUMA reaches "
                f"{100 * (own - base) / (full - base):.0f} % with {100 * share:.1f} % of the trainable weights."
            )
    return sentences


def collapses(records: Sequence[Record]) -> list[str]:
    """A sentence per method of whose runs some ended below half of the method's median harmonic R@1.

    Such a run has failed, not come out a little worse; it dominates mean and interval, so it is named.
    """
    sentences = []
    for key in dict.fromkeys(record["method"] for record in records):
        scores = [record["scores"]["harmonic"] for record in records if record["method"] == key]
        typical = median(scores)
        failed = [score for score in scores if score < typical / 2]
        if failed:
            sentences.append(
                f"{METHODS[key].label}: {len(failed)} of {len(scores)} runs collapsed (harmonic R@1 "
                f"{', '.join(f'{100 * score:.1f}' for score in failed)}; median of all {100 * typical:.1f}). "
                "Mean and interval include them."
            )
    return sentences
