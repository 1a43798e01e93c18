"""The recorded full comparison that comes with the package."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from puma_plugin.cli.parsing import make_parser, packaged_config, parse
from puma_plugin.experiments.comparing.recorded import load_recorded, record, recorded_rates
from puma_plugin.experiments.contestants.methods import MAIN_KEYS, METHODS
from puma_plugin.experiments.settings.comparison_config import DemoConfig


def test_what_is_shipped_is_a_full_comparison() -> None:
    recorded = load_recorded()
    assert set(MAIN_KEYS) <= {row["key"] for row in recorded["methods"]}
    assert {"machine", "versions", "commit", "date", "command"} <= set(recorded)
    assert len(recorded["settings"]["data_seeds"]) >= 3
    grid = recorded["learning_rates"]["multipliers"]
    # Of the demo as it comes with the package.
    packaged, _ = parse(make_parser("demo", "", DemoConfig, [packaged_config("demo")]), DemoConfig, [])
    assert grid == packaged.grid
    assert recorded["settings"]["train"]["optimizer"] == asdict(packaged.train.optimizer)
    assert {"linear", "puma", "adapters", "separate", "full"} <= set(recorded_rates())
    assert set(recorded_rates().values()) <= set(grid)
    for row in recorded["methods"]:
        seeds = len(recorded["settings"]["seeds"]) if METHODS[row["key"]].trained else 1
        assert row["runs"] == len(recorded["settings"]["data_seeds"]) * seeds
        for interval in row["per_distribution"].values():
            assert interval["low"] <= interval["mean"] <= interval["high"]


def _metrics(folder: Path, rates: dict | None) -> Path:
    content = {
        **dict.fromkeys(
            ("command", "date", "seconds", "machine", "versions", "commit", "distributions", "methods", "differences",
             "interval_method", "findings"), "kept"
        ),
        "settings": {"data_seeds": [0, 1], "seeds": [0, 1, 2]},
        "learning_rates": rates,
        "runs": ["left out"],
    }  # fmt: skip
    path = folder / "metrics.json"
    path.write_text(json.dumps(content))
    return path


def test_recording_keeps_the_summary(tmp_path: Path) -> None:
    target = tmp_path / "recorded.json"
    record(_metrics(tmp_path, {"chosen": {"puma": 2.0}}), target)
    kept = load_recorded(target)
    assert "runs" not in kept
    assert kept["learning_rates"] == {"chosen": {"puma": 2.0}}
    assert kept["description"] == "the recorded full comparison, 2 data seeds x 3 training seeds"


def test_what_is_shipped_was_kept_of_the_metrics_in_the_repository(tmp_path: Path) -> None:
    """An older version wrote them, and they can still be read."""
    metrics = Path(__file__).parents[3] / "benchmarks" / "results" / "demo" / "metrics.json"
    assert record(metrics, tmp_path / "recorded.json") == load_recorded()


def test_a_short_demo_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is of a short demo"):
        record(_metrics(tmp_path, None), tmp_path / "recorded.json")
    assert not (tmp_path / "recorded.json").exists()
