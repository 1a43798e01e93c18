"""Intervals over classes, and differences between two evaluations."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from puma_plugin.evaluation import (
    BootstrapInterval,
    Comparison,
    RetrievalResult,
    bootstrap_intervals,
    compare_results,
    evaluate_retrieval,
)
from puma_plugin.evaluation.bootstrap import _degrees_of_freedom, _intervals


def evaluation(spread: float, seed: int = 0, classes: int = 30, per_class: int = 8) -> RetrievalResult:
    """Two distributions of classes around centres; a larger spread is a worse model of the same images."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.stack([np.arange(classes), np.arange(classes) % 2], axis=1), per_class, axis=0)
    centres, noise = rng.standard_normal((classes, 10)), rng.standard_normal((len(labels), 10))
    rows = centres[labels[:, 0]] + spread * noise
    return evaluate_retrieval(rows, labels, distribution_names=["birds", "cars"])


def evaluated(*arguments: Any, **named: Any) -> dict[str, Any]:
    return evaluation(*arguments, **named).to_dict(per_class=True)


def test_values_are_those_of_the_result() -> None:
    result = evaluated(1.2)
    found = bootstrap_intervals(result, replicates=50)
    for metric in ("recall_at_1", "recall_at_8", "map_at_r", "r_precision"):
        for key in ("unified", "harmonic_mean", "arithmetic_mean", "worst"):
            assert found[f"{key}.{metric}"].value == pytest.approx(result[key][metric], abs=1e-12)
        for name in ("birds", "cars"):
            expected = result["per_distribution"][name][metric]
            assert found[f"per_distribution.{name}.{metric}"].value == pytest.approx(expected, abs=1e-12)
    assert found["leak"].value == pytest.approx(result["leak"], abs=1e-12)
    metrics = list(result["unified"])
    means = ("unified", "harmonic_mean", "arithmetic_mean", "worst")
    figures = (*means, "per_distribution.birds", "per_distribution.cars")
    leaks = {"leak", "leak_per_distribution.birds", "leak_per_distribution.cars"}
    assert set(found) == {f"{figure}.{metric}" for figure in figures for metric in metrics} | leaks
    assert found["leak_per_distribution.cars"].value == pytest.approx(result["leak_per_distribution"]["cars"])
    for interval in found.values():
        assert interval.low <= interval.value <= interval.high


def test_results_themselves_are_taken_as_well() -> None:
    results = [evaluation(spread) for spread in (1.0, 1.4)]
    better, worse = (result.to_dict(per_class=True) for result in results)
    assert bootstrap_intervals(results[0], replicates=50) == bootstrap_intervals(better, replicates=50)
    assert compare_results(*results, replicates=50) == compare_results(better, worse, replicates=50)


def test_classes_are_drawn_within_their_distribution() -> None:
    """A recount: draw the classes by a plain loop, and average their queries."""
    result = evaluated(1.2)
    part = result["per_class"]["birds"]
    sums, counted = np.array(part["own"]["recall_at_1"]), np.array(part["own"]["counted"])
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, len(sums), len(sums) - 1) for _ in range(20000)]  # one less: see the module
    means = [sums[chosen].sum() / counted[chosen].sum() for chosen in drawn]
    found = bootstrap_intervals(result, replicates=20000)["per_distribution.birds.recall_at_1"]
    tail = 100 * stats.norm.cdf(stats.t.ppf(0.025, len(sums) - 1))
    assert tail < 2
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [tail, 100 - tail]), abs=0.01)


def test_queries_of_one_class_are_not_independent() -> None:
    # All queries of a class succeed, or all fail: 200 classes of 50 queries say as much as 200 queries.
    part = {
        "classes": [str(i) for i in range(200)],
        "queries": [50] * 200,
        "leaks": [0] * 200,
        "own": {"counted": [50.0] * 200, "recall_at_1": [50.0, 0.0] * 100},
        "unified": {"counted": [50.0] * 200, "recall_at_1": [50.0, 0.0] * 100},
    }
    result = {
        "unified": {"recall_at_1": 0.5},
        "arithmetic_mean": {"recall_at_1": 0.5},
        "protocol": "honest",
        "per_class": {"shop": part},
    }
    found = bootstrap_intervals(result)["unified.recall_at_1"]
    assert found.value == 0.5
    # Standard error of 200 independent coin flips, not of 10,000.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 / 200), rel=0.1)


def test_seed_and_confidence() -> None:
    result = evaluated(1.2)
    first = bootstrap_intervals(result, replicates=300, seed=3)
    assert first == bootstrap_intervals(result, replicates=300, seed=3)
    assert first != bootstrap_intervals(result, replicates=300, seed=4)
    # As many draws as asked for: of a single one both bounds are its figure.
    assert all(i.low == i.high for i in bootstrap_intervals(result, replicates=1).values())
    narrow = bootstrap_intervals(result, replicates=300, seed=3, confidence=0.5)["unified.map_at_r"]
    assert narrow.high - narrow.low < first["unified.map_at_r"].high - first["unified.map_at_r"].low


def test_bounds_are_percentiles_of_the_draws() -> None:
    draws = {"a": np.array([*np.arange(101.0), np.nan])}
    found = _intervals({"a": np.array([7.0])}, draws, {"birds": 10**6}, confidence=0.9)["a"]
    assert (found.value, found.low, found.high) == pytest.approx((7, 5, 95), abs=1e-3)
    tail = 100 * stats.norm.cdf(stats.t.ppf(0.05, 4))
    found = _intervals({"a": np.array([7.0])}, draws, {"birds": 3, "cars": 3}, confidence=0.9)["a"]
    assert (found.low, found.high) == pytest.approx((tail, 100 - tail))


def simulated(classes: tuple[int, ...], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two models that are equally good at classes of 20 queries: what is measured differs by chance only."""
    hits: list[list[Any]] = [[], []]
    for count in classes:
        ease = rng.beta(2, 2, count)
        for model in hits:
            model.append(rng.binomial(20, np.clip(ease + 0.1 * rng.normal(size=count), 0, 1)).tolist())
    return [
        {
            "protocol": "honest",
            "arithmetic_mean": {"recall_at_1": 0.0},
            "unified": {"recall_at_1": 0.0},
            "per_class": {
                f"d{number}": {
                    "classes": [f"c{index}" for index in range(len(own))],
                    "queries": [20] * len(own),
                    "leaks": [0] * len(own),
                    "own": {"counted": [20] * len(own), "recall_at_1": own},
                    "unified": {"counted": [20] * len(own), "recall_at_1": own},
                }
                for number, own in enumerate(model)
            },
        }
        for model in hits
    ]


@pytest.mark.parametrize("classes", [(5, 5), (10, 12), (5, 200)])
def test_of_few_classes_no_more_is_called_outside_chance_than_is_said(classes: tuple[int, ...]) -> None:
    """Plain percentiles call 17 % of equal models different by five classes, and 9 % by ten."""
    rng = np.random.default_rng(0)
    figures = [f"{name}.recall_at_1" for name in ("per_distribution.d0", "unified", "harmonic_mean", "arithmetic_mean")]
    outside = []
    for _ in range(300):
        differences = compare_results(*simulated(classes, rng), replicates=400).differences
        outside.append([differences[name].excludes_zero for name in figures])
    own, *joint = np.mean(outside, axis=0)
    assert own < 0.11
    assert max(joint) < 0.09


def test_degrees_of_freedom_of_means_are_those_of_what_varies_most() -> None:
    """Welch and Satterthwaite by hand: variances 4 and 1 of 5 and 101 classes."""
    samples = {"per_distribution.a.r": np.array([0.0, 4.0]), "per_distribution.b.r": np.array([0.0, 2.0])}
    classes = {"a": 5, "b": 101}
    expected = (4 + 1) ** 2 / (4**2 / 4 + 1**2 / 100)
    assert _degrees_of_freedom("arithmetic_mean.r", samples, classes) == pytest.approx(expected)
    assert _degrees_of_freedom("unified.r", samples, classes) == 4 + 100
    assert _degrees_of_freedom("per_distribution.b.r", samples, classes) == 100
    assert _degrees_of_freedom("leak_per_distribution.a", samples, classes) == 4


def test_classes_are_matched_by_name() -> None:
    """Two evaluations of the same images may number their classes differently."""
    better, worse = evaluated(1.1), evaluated(1.2)
    turned = {
        name: {
            key: {k: v[::-1] for k, v in part[key].items()} if isinstance(part[key], dict) else part[key][::-1]
            for key in part
        }
        for name, part in worse["per_class"].items()
    }
    assert turned["birds"]["classes"] != worse["per_class"]["birds"]["classes"]
    assert compare_results(better, {**worse, "per_class": turned}) == compare_results(better, worse)


def test_an_evaluation_does_not_differ_from_itself() -> None:
    comparison = compare_results(evaluated(1.2), evaluated(1.2), replicates=100)
    assert comparison.paired
    assert {(i.value, i.low, i.high) for i in comparison.differences.values()} == {(0.0, 0.0, 0.0)}
    total = len(comparison.differences)
    assert f"{total} of {total} figures do not differ" in comparison.text()


def test_pairing_resolves_what_unpaired_draws_do_not() -> None:
    better, worse = evaluated(1.1), evaluated(1.2)
    paired = compare_results(better, worse)
    # The same figures under other class names: which class is which is then unknown.
    renamed = {
        name: {**part, "classes": [f"other {c}" for c in part["classes"]]} for name, part in worse["per_class"].items()
    }
    unpaired = compare_results(better, {**worse, "per_class": renamed})
    for changed in ({"cars": renamed["cars"]}, {"cars": {**worse["per_class"]["cars"], "queries": [7] * 15}}):
        one_other = {**worse, "per_class": {**worse["per_class"], **changed}}
        assert not compare_results(better, one_other, replicates=10).paired
    assert paired.paired
    assert not unpaired.paired
    key = "unified.map_at_r"
    assert paired.differences[key].value == unpaired.differences[key].value > 0
    width = {c.paired: c.differences[key].high - c.differences[key].low for c in (paired, unpaired)}
    assert width[True] < 0.6 * width[False]
    assert paired.differences[key].excludes_zero
    assert key in paired.text()
    assert "unpaired: the two did not ask for the same classes" in unpaired.text()


def test_intervals_of_the_difference_hold_the_true_one_as_often_as_they_say() -> None:
    # Two models of equal quality on 60 test sets: about 5 % of the intervals leave zero out.
    outside = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        labels = np.repeat(np.stack([np.arange(40), np.zeros(40, int)], axis=1), 5, axis=0)
        centres = rng.standard_normal((40, 8))
        results = [
            evaluate_retrieval(centres[labels[:, 0]] + rng.standard_normal((200, 8)), labels).to_dict(per_class=True)
            for _ in range(2)
        ]
        difference = compare_results(*results, replicates=300).differences["unified.recall_at_1"]
        outside += difference.excludes_zero
    assert outside <= 9


def test_only_distributions_in_common_are_compared() -> None:
    result = evaluated(1.2)
    other = evaluated(1.3)
    other["per_class"]["dogs"] = other["per_class"].pop("cars")
    comparison = compare_results(result, other, replicates=20)
    assert {name.split(".")[1] for name in comparison.differences} == {"birds"}
    assert not comparison.paired


def test_leaks_into_other_galleries_are_not_compared() -> None:
    """One evaluation had a distribution more, into which queries may leak."""
    whole = evaluated(1.2)
    alone = {**whole, "per_class": {"birds": whole["per_class"]["birds"]}}
    found = compare_results(alone, whole, replicates=20).differences
    assert found
    assert all(name.startswith("per_distribution.birds.") for name in found)


def test_without_joint_figures() -> None:
    # Each distribution was embedded by a model of its own.
    result = {**evaluated(1.2), "unified": None, "leak": None}
    found = bootstrap_intervals(result, replicates=20)
    assert "harmonic_mean.recall_at_1" in found
    assert not any("unified" in name or "leak" in name for name in found)


def test_the_order_of_the_distributions_does_not_matter() -> None:
    result, other = evaluated(1.2), evaluated(1.3)
    turned = {**other, "per_class": dict(reversed(other["per_class"].items()))}
    assert list(turned["per_class"]) != list(other["per_class"])
    assert compare_results(result, turned, replicates=50) == compare_results(result, other, replicates=50)


def test_one_class_gives_no_interval() -> None:
    # Every draw of its one class is the same: that is no certainty.
    rng = np.random.default_rng(0)
    labels = np.repeat(np.stack([np.arange(11), np.arange(11) // 10], axis=1), 4, axis=0)
    centres, noise = rng.standard_normal((11, 8)), rng.standard_normal((44, 8))
    better, worse = (
        evaluate_retrieval(centres[labels[:, 0]] + spread * noise, labels, distribution_names=["many", "one"])
        for spread in (0.7, 1.3)
    )
    comparison = compare_results(better.to_dict(per_class=True), worse.to_dict(per_class=True), confidence=0.8)
    differences = comparison.differences
    for name in ("leak_per_distribution.one", "unified.recall_at_1", "harmonic_mean.recall_at_1"):
        assert np.isnan([differences[name].low, differences[name].high]).all()
        assert not differences[name].excludes_zero
    assert differences["per_distribution.many.map_at_r"].excludes_zero
    assert comparison.to_dict()["differences"]["leak_per_distribution.one"]["low"] is None
    assert "80 % intervals" in comparison.text()
    assert "figures have no interval" in comparison.text()


@pytest.mark.parametrize(("classes", "known"), [(8, False), (10, True)])
def test_fewer_than_five_classes_give_no_interval(classes: int, known: bool) -> None:
    # Half of them in each distribution.
    result = evaluated(1.2, classes=classes)
    interval = bootstrap_intervals(result, replicates=50)["unified.recall_at_1"]
    assert np.isfinite([interval.low, interval.high]).all() == known


def test_an_interval_without_width_is_no_difference_outside_chance() -> None:
    assert not BootstrapInterval(0.2, 0.2, 0.2).excludes_zero
    assert BootstrapInterval(0.2, 0.1, 0.3).excludes_zero


def test_draws_without_a_query_that_counts_are_left_out() -> None:
    # Of five classes only one has queries with a positive; two of its four find it. A draw says 0.5, or nothing.
    part = {"classes": list("abcde"), "own": {"counted": [4, 0, 0, 0, 0], "recall_at_1": [2, 0, 0, 0, 0]}}
    result = {"unified": None, "arithmetic_mean": {"recall_at_1": 0.5}, "per_class": {"shop": part}}
    found = bootstrap_intervals(result)["per_distribution.shop.recall_at_1"]
    assert found == BootstrapInterval(0.5, 0.5, 0.5)


def test_text_of_a_comparison() -> None:
    nan = float("nan")
    differences = {
        "leak": BootstrapInterval(0.02, 0.01, 0.035),
        "worst.map_at_r": BootstrapInterval(-0.1, -0.2, -0.05),
        "inside": BootstrapInterval(0.01, -0.01, 0.02),
        "also inside": BootstrapInterval(0.0, -0.01, 0.02),
        "of few classes": BootstrapInterval(0.1, nan, nan),
        "of no query": BootstrapInterval(nan, nan, nan),
        "of no query either": BootstrapInterval(nan, nan, nan),
    }
    # Of the four figures with an interval a quarter lies outside by chance at 75 %.
    assert Comparison(differences, paired=True, confidence=0.75).text().splitlines() == [
        "Differences from the baseline in points, 75 % intervals (paired by class):",
        "  leak             +2.00  (+1.00 to +3.50)",
        "  worst.map_at_r  -10.00  (-20.00 to -5.00)",
        "  2 of 7 figures do not differ by more than chance",
        "  (of so many, about 1 would lie outside by chance alone)",
        "  1 figures have no interval: fewer than 5 classes",
        "  2 figures are undefined in one of the two: no query of a distribution counts",
    ]


def test_errors_at_the_door() -> None:
    result = evaluated(1.2)
    with pytest.raises(ValueError, match="no sums by class"):
        bootstrap_intervals({**result, "per_class": None})
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence"):
            bootstrap_intervals(result, confidence=confidence)
        with pytest.raises(ValueError, match="confidence"):
            compare_results(result, result, confidence=confidence)
    with pytest.raises(ValueError, match="replicates"):
        bootstrap_intervals(result, replicates=0)
    with pytest.raises(ValueError, match="protocol"):
        compare_results(result, {**result, "protocol": "paper-code"})
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_results(result, {**result, "per_class": {"dogs": result["per_class"]["cars"]}})
