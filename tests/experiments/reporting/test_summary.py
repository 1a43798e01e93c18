"""Rows, curves and sentences, from records whose figures are worked out by hand."""

from dataclasses import replace

import pytest

from puma_plugin.experiments.contestants.methods import METHODS, named
from puma_plugin.experiments.reporting.summary import (
    bootstrapped,
    collapses,
    curves,
    differences,
    findings,
    flat_scores,
    method_rows,
)


def record(
    method: str, data_seed: int, seed: int, harmonic: float, trainable: int = 100, separate: bool = False
) -> dict:
    joint = None if separate else harmonic - 0.1
    return {
        "method": method,
        "data_seed": data_seed,
        "seed": seed,
        "trainable": trainable,
        "seconds": 10.0 + seed,
        "scores": {
            "harmonic": harmonic,
            "arithmetic": harmonic + 0.05,
            "worst": harmonic - 0.2,
            "unified": joint,
            "leak": None if separate else 0.02,
            "per_distribution": {"glyph": harmonic + 0.1, "digit": harmonic - 0.2},
        },
        "validation": [{"epoch": 1, "harmonic": harmonic}, {"epoch": 2, "harmonic": harmonic + 0.02 * seed}],
    }


RECORDS = [
    *(record("frozen", data, 0, 0.50 + 0.01 * data, trainable=0) for data in range(3)),
    *(record("puma", data, seed, 0.55 + 0.01 * data + 0.001 * seed, 120) for data in range(3) for seed in range(3)),
    *(record("full", data, seed, 0.60 + 0.01 * data + 0.001 * seed, 1200) for data in range(3) for seed in range(3)),
    *(record("separate", data, seed, 0.58, 9600, separate=True) for data in range(3) for seed in range(3)),
]
ORDER = named(("frozen", "linear", "puma", "separate", "full"))


def test_rows() -> None:
    rows = {row["key"]: row for row in method_rows(RECORDS, ORDER)}
    assert list(rows) == ["frozen", "puma", "separate", "full"]
    puma = rows["puma"]
    assert puma["scores"]["harmonic"]["mean"] == pytest.approx(0.561)
    assert puma["runs"] == 9
    assert puma["per_distribution"]["digit"]["mean"] == pytest.approx(0.361)
    assert puma["seconds"] == pytest.approx(11.0)
    # Data seed means 0.551, 0.561, 0.571: standard deviation 0.01, times t(2) / sqrt(3).
    half_width = 4.302653 * 0.01 / 3**0.5
    assert puma["scores"]["harmonic"]["high"] == pytest.approx(0.561 + half_width, abs=1e-6)
    assert rows["separate"]["scores"]["unified"] is None
    assert rows["frozen"]["runs"] == 3


def test_differences_are_paired_by_data_seed() -> None:
    gaps = differences(RECORDS, ORDER)
    assert set(gaps) == {"frozen", "separate", "full"}
    # The data seed moves both methods alike, so nothing is left but the difference.
    for key, gap in (("full", -0.05), ("frozen", 0.051)):
        assert [gaps[key][name] for name in ("mean", "low", "high")] == pytest.approx([gap] * 3)
    assert differences([item for item in RECORDS if item["method"] != "puma"], ORDER) == {}


def test_findings_say_what_the_figures_say() -> None:
    rows = method_rows(RECORDS, ORDER)
    sentences = findings(rows, differences(RECORDS, ORDER), ORDER)
    by_phrase = {
        phrase: text for text in sentences for phrase in ("frozen features (", "full fine-tuning (") if phrase in text
    }
    assert "5.1 points above frozen features" in by_phrase["frozen features ("]
    assert "resolved" in by_phrase["frozen features ("]
    assert "5.0 points below full fine-tuning" in by_phrase["full fine-tuning ("]
    # (0.561 - 0.510) / (0.611 - 0.510) = 50 %; 120 / 1200 = 10 %.
    assert "PUMA reaches 50 % with 10.0 % of the trainable weights" in sentences[-1]


def test_unresolved_and_single_runs_are_called_so() -> None:
    noisy = [record("puma", data, 0, value) for data, value in enumerate((0.50, 0.55, 0.60))]
    noisy += [record("full", data, 0, value) for data, value in enumerate((0.60, 0.55, 0.51))]
    assert (
        "not resolved: the interval includes zero"
        in findings(method_rows(noisy, ORDER), differences(noisy, ORDER), ORDER)[0]
    )
    single = [record("puma", 0, 0, 0.55), record("linear", 0, 0, 0.50)]
    sentence = findings(method_rows(single, ORDER), differences(single, ORDER), ORDER)[0]
    assert "5.0 points above a linear head in this single run" in sentence


def test_many_unresolved_differences_share_a_sentence() -> None:
    rows = [replace(METHODS["puma"], key=f"row{i}", phrase=f"row {i}") for i in range(10)]
    records = [record("puma", data, 0, value) for data, value in enumerate((0.50, 0.55, 0.60))]
    for i, row in enumerate(rows):
        # The first is resolved, the others are not.
        values = (0.30, 0.35, 0.40) if i == 0 else (0.60, 0.55, 0.515 + 0.001 * i)
        records += [record(row.key, data, 0, value) for data, value in enumerate(values)]
    methods = [METHODS["puma"], *rows]
    first, shared = findings(method_rows(records, methods), differences(records, methods), methods)
    assert "20.0 points above row 0" in first
    assert shared.endswith("row 1 -0.5; row 2 -0.6; row 3 -0.6; row 4 -0.6; row 5 -0.7; row 6 -0.7; row 7 -0.7; "
                           "row 8 -0.8; row 9 -0.8.")  # fmt: skip


def test_a_few_unresolved_differences_have_a_sentence_each() -> None:
    rows = [replace(METHODS["puma"], key=f"row{i}", phrase=f"row {i}") for i in range(8)]
    records = [record("puma", data, 0, value) for data, value in enumerate((0.50, 0.55, 0.60))]
    records += [record(r.key, data, 0, value) for r in rows for data, value in enumerate((0.60, 0.55, 0.51))]
    methods = [METHODS["puma"], *rows]
    assert len(findings(method_rows(records, methods), differences(records, methods), methods)) == 8


def test_no_share_of_a_gain_that_there_is_not() -> None:
    """Full fine-tuning may be no better than frozen features."""
    runs = [record("frozen", 0, 0, 0.5, 0), record("puma", 0, 0, 0.6, 12), record("full", 0, 0, 0.5, 120)]
    sentences = findings(method_rows(runs, ORDER), differences(runs, ORDER), ORDER)
    assert len(sentences) == 2
    assert not any("gain" in sentence for sentence in sentences)


def test_a_difference_that_is_always_the_same_is_said_for_itself() -> None:
    """It has an interval without width, which includes no zero; however many there are."""
    rows = [replace(METHODS["puma"], key=f"row{i}", phrase=f"row {i}") for i in range(10)]
    records = [record("puma", data, 0, 0.75) for data in range(2)]
    records += [record(row.key, data, 0, 0.5) for row in rows for data in range(2)]
    methods = [METHODS["puma"], *rows]
    sentences = findings(method_rows(records, methods), differences(records, methods), methods)
    assert len(sentences) == 10
    assert sentences[0] == (
        "PUMA's harmonic R@1 is 25.0 points above row 0 (95 % interval of the difference +25.0 to +25.0 points: not "
        "resolved: the interval has no width)."
    )


def test_no_clumsy_genitives() -> None:
    pair = [record("puma", 0, 0, 0.55), record("frozen", 0, 0, 0.50, trainable=0)]
    rows = method_rows(pair, ORDER)
    (sentence,) = findings(rows, differences(pair, ORDER, "frozen"), ORDER, "frozen")
    assert sentence.startswith("Harmonic R@1 of frozen features is 5.0 points below PUMA in this single run")
    (sentence,) = findings(rows, differences(pair, ORDER, "puma"), ORDER, "puma")
    assert sentence.startswith("PUMA's harmonic R@1 is 5.0 points above frozen features in this single run")


def test_recorded_rows_are_not_compared_with_own_ones() -> None:
    rows = method_rows([item for item in RECORDS if item["method"] != "full"], ORDER)
    rows += [{**row, "recorded": True} for row in method_rows(RECORDS, named(("full",)))]
    gaps = differences([item for item in RECORDS if item["method"] != "full"], ORDER)
    assert not any("full fine-tuning" in sentence for sentence in findings(rows, gaps, ORDER))


def test_curves_are_means_and_ranges_in_percent() -> None:
    found = curves([record("puma", 0, seed, 0.5) for seed in range(3)], ORDER)
    assert list(found) == [METHODS["puma"].label]
    assert found["PUMA"][0] == pytest.approx({"epoch": 1, "mean": 50.0, "low": 50.0, "high": 50.0})
    assert found["PUMA"][1] == pytest.approx({"epoch": 2, "mean": 52.0, "low": 50.0, "high": 54.0})


def test_curves_are_in_the_order_of_the_epochs_and_no_single_points() -> None:
    late, early = record("puma", 0, 0, 0.5), record("puma", 0, 1, 0.5)
    late["validation"] = [{"epoch": 2, "harmonic": 0.5}]
    assert curves([late], ORDER) == {}
    early["validation"] = [{"epoch": 1, "harmonic": 0.4}]
    assert [point["epoch"] for point in curves([late, early], ORDER)["PUMA"]] == [1, 2]


def test_scores_of_an_evaluation() -> None:
    result = {
        "harmonic_mean": {"recall_at_1": 0.4},
        "arithmetic_mean": {"recall_at_1": 0.5},
        "worst": {"recall_at_1": 0.3},
        "unified": {"recall_at_1": 0.35},
        "leak": 0.1,
        "per_distribution": {"a": {"recall_at_1": 0.3}, "b": {"recall_at_1": 0.6}},
    }
    assert flat_scores(result) == {
        "harmonic": 0.4, "arithmetic": 0.5, "worst": 0.3, "unified": 0.35, "leak": 0.1,
        "per_distribution": {"a": 0.3, "b": 0.6},
    }  # fmt: skip
    scores = flat_scores({**result, "unified": None, "leak": None})
    assert scores["unified"] is scores["leak"] is None


def test_a_single_evaluation_has_the_bounds_of_its_bootstrap() -> None:
    (row,) = method_rows([record("separate", 0, 0, 0.5, separate=True)], ORDER)
    figures = ("harmonic_mean", "arithmetic_mean", "worst", "per_distribution.glyph")
    intervals = {f"{name}.recall_at_1": {"low": 0.1 * n, "high": 0.1 * n + 0.3} for n, name in enumerate(figures)}
    found = bootstrapped(row, intervals)
    shown = {**found["scores"], **found["per_distribution"]}
    for n, (name, mean) in enumerate({"harmonic": 0.5, "arithmetic": 0.55, "worst": 0.3, "glyph": 0.6}.items()):
        bounds = shown[name]["mean"], shown[name]["low"], shown[name]["high"]
        assert bounds == pytest.approx((mean, 0.1 * n, 0.1 * n + 0.3))
    # Of what is not told there are none, and of separate models no joint figure.
    assert (shown["digit"]["low"], shown["digit"]["high"]) == (None, None)
    assert shown["unified"] is shown["leak"] is None
    (row,) = method_rows([record("puma", 0, 0, 0.5)], ORDER)
    joint = {"unified.recall_at_1": {"low": 0.3, "high": 0.5}, "leak": {"low": 0.01, "high": 0.04}}
    scores = bootstrapped(row, joint)["scores"]
    assert [scores["unified"][name] for name in ("low", "high")] == [0.3, 0.5]
    assert [scores["leak"][name] for name in ("low", "high")] == [0.01, 0.04]


def test_intervals_over_training_seeds_of_one_data_seed() -> None:
    runs = [record("frozen", 0, 0, 0.50, trainable=0)]
    runs += [record("puma", 0, seed, 0.55 + 0.01 * seed) for seed in range(3)]
    rows = {row["key"]: row["scores"]["harmonic"] for row in method_rows(runs, ORDER, "seed")}
    # 0.55, 0.56, 0.57: standard deviation 0.01, times t(2) / sqrt(3).
    assert rows["puma"]["high"] - rows["puma"]["mean"] == pytest.approx(4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert rows["frozen"]["low"] is None
    # Frozen features are the same for every seed, so all three pairs count.
    gap = differences(runs, ORDER, "puma", "seed")["frozen"]
    assert gap["mean"] == pytest.approx(0.06)
    assert gap["low"] == pytest.approx(0.06 - 4.302653 * 0.01 / 3**0.5, abs=1e-6)


def test_an_untrained_reference_stands_against_every_training_seed() -> None:
    runs = [record("frozen", 0, 0, 0.50, trainable=0)]
    runs += [record("puma", 0, seed, 0.55 + 0.01 * seed) for seed in range(3)]
    gap = differences(runs, ORDER, "frozen", "seed")["puma"]
    assert gap["mean"] == pytest.approx(-0.06)
    assert gap["high"] == pytest.approx(-0.06 + 4.302653 * 0.01 / 3**0.5, abs=1e-6)


def test_a_run_that_failed_is_named() -> None:
    assert collapses(RECORDS, ORDER) == []
    assert collapses([record("puma", 0, seed, value) for seed, value in enumerate((0.5, 0.5, 0.25))], ORDER) == []
    (sentence,) = collapses([*RECORDS, record("puma", 2, 3, 0.03)], ORDER)
    assert sentence.startswith("PUMA: 1 of 10 runs collapsed (harmonic R@1 3.0; median of all 56.0)")
