"""What every metrics.json holds, from records whose figures are worked out by hand."""

from typing import Any

import pytest

from puma_plugin.experiments.contestants.methods import named
from puma_plugin.experiments.reporting.metrics import common_metrics
from puma_plugin.experiments.reporting.tables import explained

ORDER = named(("frozen", "puma"))


def record(method: str, data_seed: int, seed: int, harmonic: float) -> dict[str, Any]:
    scores = dict.fromkeys(("harmonic", "arithmetic", "worst", "unified", "leak"), harmonic)
    return {
        "method": method,
        "data_seed": data_seed,
        "seed": seed,
        "trainable": 100,
        "seconds": 10.0,
        "validation": [],
        "scores": {**scores, "per_distribution": {"glyph": harmonic, "digit": harmonic}},
        "result": {"leak": harmonic},
        "intervals": {"harmonic_mean.recall_at_1": {"low": harmonic - 0.2, "high": harmonic + 0.1}},
        "settings": {"left": "out"},
    }


def metrics(*records: dict[str, Any], reference: str = "puma") -> dict[str, Any]:
    return common_metrics(
        records, ORDER, reference, command="puma test", seconds=12.34, settings={"epochs": 3}, facts={"Seed": 7},
        curve_note="Curves.", remarks=["Remarked."], learning_rates={"chosen": {"puma": 2.0}},
    )  # fmt: skip


def bounds(found: dict[str, Any]) -> tuple[float, float]:
    interval = next(row for row in found["methods"] if row["key"] == "puma")["scores"]["harmonic"]
    return interval["low"], interval["high"]


def test_one_run_each_has_the_intervals_of_its_classes() -> None:
    found = metrics(record("frozen", 0, 0, 0.4), record("puma", 0, 3, 0.5))
    assert bounds(found) == pytest.approx((0.3, 0.6))
    assert found["interval_name"] == "95 % bootstrap interval over the test classes"
    assert found["interval_note"] == "One run per method. Bars: 95 % bootstrap intervals over the classes."
    assert [run["method"] for run in found["runs"]] == ["frozen", "puma"]
    assert "intervals" in found["runs"][1]
    assert "settings" not in found["runs"][1]
    assert found["differences"]["frozen"]["mean"] == pytest.approx(0.1)
    (sentence,) = found["findings"]
    assert "10.0 points above frozen features in this single run" in sentence


# 0.5 and 0.6: standard deviation 0.1 / sqrt(2), and t(1) is 12.7062 at 97.5 %.
HALF_WIDTH = 12.7062 * 0.1 / 2


def test_several_training_seeds_are_what_intervals_are_over() -> None:
    found = metrics(record("frozen", 0, 0, 0.4), record("puma", 0, 0, 0.5), record("puma", 0, 1, 0.6))
    assert bounds(found) == pytest.approx((0.55 - HALF_WIDTH, 0.55 + HALF_WIDTH), abs=1e-5)
    assert found["interval_name"] == "95 % t-interval over the training seeds"
    assert found["interval_note"] == "Points: means. Bars: 95 % intervals."
    # Of frozen features, which are not trained, the one run stands against every seed: 0.1 and 0.2.
    gap = found["differences"]["frozen"]
    assert (gap["low"], gap["high"]) == pytest.approx((0.15 - HALF_WIDTH, 0.15 + HALF_WIDTH), abs=1e-5)
    assert not any("intervals" in run for run in found["runs"])


def test_with_several_data_seeds_intervals_are_over_these() -> None:
    runs = [record("puma", data_seed, seed, 0.5 + 0.1 * data_seed) for data_seed in (0, 1) for seed in (0, 1)]
    found = metrics(*runs)
    assert bounds(found) == pytest.approx((0.55 - HALF_WIDTH, 0.55 + HALF_WIDTH), abs=1e-5)
    assert found["interval_name"] == "95 % t-interval over the means of the data seeds"


def test_the_facts_say_where_it_ran_and_what_the_command_adds() -> None:
    found = metrics(record("puma", 0, 0, 0.5))
    assert list(found["facts"]) == [
        "Command",
        "Machine",
        "GPU",
        "Versions",
        "Commit",
        "Seed",
        "Seconds of the last start",
    ]
    assert found["facts"]["Machine"].startswith(found["machine"]["cpu"])
    assert f"torch {found['versions']['torch']}" in found["facts"]["Versions"]
    assert (found["facts"]["Commit"], found["facts"]["Seed"]) == (found["commit"], 7)
    assert (found["seconds"], found["facts"]["Seconds of the last start"]) == (12.3, "12")
    assert found["distributions"] == ["glyph", "digit"]


def test_what_the_command_gives_is_kept() -> None:
    found = metrics(record("frozen", 0, 0, 0.4), record("puma", 0, 0, 0.5))
    assert (found["command"], found["settings"], found["curve_note"]) == ("puma test", {"epochs": 3}, "Curves.")
    assert found["learning_rates"] == {"chosen": {"puma": 2.0}}
    assert found["facts"]["Command"] == "puma test"
    assert found["facts"]["GPU"] == found["machine"]["gpu"]
    assert found["accent"] == "puma"


def test_the_other_methods_are_compared_with_the_reference() -> None:
    found = metrics(record("frozen", 0, 0, 0.4), record("puma", 0, 0, 0.5), reference="frozen")
    (sentence,) = found["findings"]
    assert sentence.startswith("Harmonic R@1 of frozen features is 10.0 points below PUMA")
    assert found["accent"] == "frozen"


def test_runs_that_failed_are_among_the_findings() -> None:
    found = metrics(*(record("puma", 0, seed, harmonic) for seed, harmonic in enumerate((0.5, 0.6, 0.01))))
    assert found["findings"][-1].startswith("PUMA: 1 of 3 runs collapsed (harmonic R@1 1.0; median of all 50.0)")


def test_texts_stay_apart_until_a_form_of_the_table_joins_them() -> None:
    found = metrics(record("puma", 0, 0, 0.5))
    assert found["interval_method"].startswith(f"{found['interval_name']}, which says")
    assert found["interval_method"] not in found["explanation"]
    assert found["remarks"] == ["Remarked."]
    text = explained(found, "Below each figure")
    assert text == f"{found['explanation']} Below each figure: {found['interval_method']} Remarked."
