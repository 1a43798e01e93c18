"""The evaluation at growing sizes: what it costs, how it is drawn, and the paper's full scale."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement import DisagreementError
from benchmarks.growth import Growth, growth_plans, measure_apart, measure_in_turns, pml_bytes
from benchmarks.reporting.goals import judge
from benchmarks.reporting.plots import write_plots
from benchmarks.reporting.results import load_results
from benchmarks.settings import EFFORTS, Settings
from benchmarks.subjects.evaluation import PAPER, EvaluationCase, EvaluationWorkload

ROOT = Path(__file__).resolve().parents[2]


def test_the_papers_class_sizes() -> None:
    items = sum(images for _, images in PAPER)
    labels = EvaluationWorkload(EvaluationCase(items, 2, per_class=0), "cpu").labels.numpy()
    assert len(labels) == items
    assert len(np.unique(labels[:, 0])) == 15_937
    assert np.bincount(labels[:, 1]).tolist() == [images for _, images in PAPER]
    few = EvaluationWorkload(EvaluationCase(2_000, 4, per_class=0), "cpu")
    assert len(np.unique(few.labels[:, 0])) == pytest.approx(15_937 * 2_000 / items, rel=0.05)
    few.check("ours", few.reference())


def test_contestants_cost_something_and_agree() -> None:
    case = EvaluationCase(600, per_class=0)
    for contestant in ("ours", "pml"):
        cost = measure_apart(case, contestant)
        assert cost.seconds > 0
        assert cost.cpu_seconds > 0
    with pytest.raises(RuntimeError, match="invalid choice"):
        measure_apart(case, "nobody")


def test_too_few_items_are_refused() -> None:
    with pytest.raises(RuntimeError, match="items must be at least 100, got 3"):
        measure_apart(EvaluationCase(3, per_class=0), "ours")


def test_contestants_take_turns_and_must_agree() -> None:
    case = EvaluationCase(40_000, per_class=0)  # measured twice
    calls: list[str] = []

    def measure(_: EvaluationCase, contestant: str) -> Growth:
        calls.append(contestant)
        return Growth(1.0, 1.0, 10, {"unified.recall_at_1": 0.5})

    found = measure_in_turns(case, ("ours", "pml"), measure)
    assert calls == ["ours", "pml", "ours", "pml"]
    assert [len(runs) for runs in found.values()] == [2, 2]

    def wrong(_: EvaluationCase, contestant: str) -> Growth:
        return Growth(1.0, 1.0, 10, {"unified.recall_at_1": 0.5 if contestant == "ours" else 0.6})

    with pytest.raises(DisagreementError, match="pml finds"):
        measure_in_turns(case, ("ours", "pml"), wrong)


def test_pml_is_left_out_where_its_memory_does_not_fit() -> None:
    # About 20 GB at the paper's scale, as its users report.
    assert 15e9 < pml_bytes(138_000) < 25e9
    plans = growth_plans(Settings(EFFORTS["full"], "cpu", "default"))
    assert (EvaluationCase(138_000, per_class=0), "ours") in plans
    assert (EvaluationCase(20_000, per_class=0), "pml") in plans


def test_plot_and_goals(files: Any, tmp_path: Path) -> None:
    benchmarks, memory = [], []
    for items, ours, pml in ((20_000, 2.0, 7.0), (138_000, 100.0, None)):
        case = {"items": items, "width": 128, "per_class": 0}
        row = {"subject": "evaluation", "case": case, "case_id": f"N{items}", "mode": "once", "limit": None}
        for contestant, seconds in (("ours", ours), ("pml", pml)):
            if seconds is not None:
                benchmarks.append(files.entry(contestant, [seconds], **row))
                memory.append({**row, "contestant": contestant, "whole": False, "peak_bytes": 10**9})
    results = load_results(files.write("growth", benchmarks, memory))
    assert "evaluation_growth.svg" in [path.name for path in write_plots(results, tmp_path / "plots")]
    verdicts = {v.goal.kind: v for v in judge(results) if v.goal.subject == "evaluation"}
    assert {kind: verdict.measured for kind, verdict in verdicts.items()} == {
        "seconds": 100.0,
        "bytes": 10**9,
        "ratio": 3.5,
    }
    assert all(verdict.reached for verdict in verdicts.values())


@pytest.mark.slow
def test_full_scale_on_two_cores() -> None:
    """138,000 items, 15,937 classes, 128 dimensions, every metric: under 4 minutes and 1.5 GB."""
    command = [sys.executable, "-m", "benchmarks.growth", "138000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cpu_seconds"] < 2 * 240
    assert found["peak_bytes"] < 1.5e9
    assert 0.1 < found["unified.recall_at_1"] < 0.99
