"""Paths among the settings, as they are kept."""

from dataclasses import asdict
from pathlib import Path

import pytest

from puma_plugin.experiments.settings.comparison_config import CompareConfig
from puma_plugin.experiments.settings.config import DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from puma_plugin.experiments.settings.places import absolute_places


def test_what_a_run_reads_is_kept_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"manifest": "lists/all.csv", "root": ".", "few_shot": "../few.json", "known_bad": "/bad.json"}
    config = TrainConfig(DataConfig(kind="manifest", bad_images="skip", **places), ModelConfig(weights="vit.pth"))
    settings = asdict(config)
    kept = absolute_places(settings)
    assert kept["data"]["manifest"] == f"{tmp_path}/lists/all.csv"
    assert kept["data"]["root"] == str(tmp_path)
    assert kept["data"]["few_shot"] == f"{tmp_path.parent}/few.json"
    assert kept["data"]["known_bad"] == "/bad.json"
    assert kept["model"]["weights"] == f"{tmp_path}/vit.pth"
    assert settings == asdict(config)
    assert absolute_places(kept) == kept


def test_what_is_no_path_or_below_the_home_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(DataConfig(folders={"birds": "birds", "cars": "~/cars"}))
    kept = absolute_places(asdict(config))
    assert kept["data"]["folders"] == {"birds": f"{tmp_path}/birds", "cars": "~/cars"}
    kept["data"]["folders"] = config.data.folders
    assert kept == asdict(config)


def test_results_below_the_home() -> None:
    """No shell puts the home folder into --out=~/runs, nor does anybody into a YAML file."""
    data = DataConfig(kind="embedded")
    training = TrainConfig(data, out="~/runs")
    for config in (training, EvaluateConfig(data, out="~/runs"), CompareConfig(training, out="~/runs")):
        assert config.out == str(Path.home() / "runs")
