"""What is kept of a run."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from puma_plugin.evaluation import RetrievalResult, bootstrap_intervals, evaluate_retrieval
from puma_plugin.experiments.running.record import run_record
from puma_plugin.experiments.running.separate import AnyRun
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, TrainConfig

TRAINING: dict[str, Any] = {
    "trainable": 9,
    "seconds": 1.5,
    "steps": 4,
    "history": [{"epoch": 1}],
    "validation": [{"epoch": 1, "harmonic": 0.5}],
}


def run(method: str) -> AnyRun:
    config = TrainConfig(DataConfig(kind="embedded"), ModelConfig("embedded", method=method))
    return cast(AnyRun, SimpleNamespace(config=config, **TRAINING))


@pytest.fixture(scope="module")
def result() -> RetrievalResult:
    """Two distributions of six classes, two images each."""
    labels = torch.stack([torch.arange(24) // 2, torch.arange(24) // 12], dim=1)
    rows = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    return evaluate_retrieval(rows, labels)


def test_of_a_run_that_was_not_tested_its_training() -> None:
    assert run_record(run("puma")) == TRAINING


def test_of_a_test_all_figures_with_their_intervals(result: RetrievalResult) -> None:
    record = run_record(run("puma"), result)
    assert record.items() >= TRAINING.items()
    assert record["result"] == result.to_dict(per_class=True)
    assert record["scores"]["harmonic"] == result.harmonic_mean["recall_at_1"]
    assert record["scores"]["leak"] == result.leak
    expected = bootstrap_intervals(result.to_dict(per_class=True))
    assert record["intervals"] == {name: interval.to_dict() for name, interval in expected.items()}
    assert "unified.recall_at_1" in record["intervals"]


def test_separate_models_have_no_joint_figures(result: RetrievalResult) -> None:
    record = run_record(run("separate"), result)
    joint = run_record(run("puma"), result)
    assert record["result"]["unified"] is record["scores"]["unified"] is record["scores"]["leak"] is None
    assert record["result"]["per_distribution"] == joint["result"]["per_distribution"]
    gone = {name for name in joint["intervals"] if name.startswith(("unified", "leak"))}
    assert gone
    assert record["intervals"].keys() == joint["intervals"].keys() - gone
