"""Learning rates over the steps of a run."""

import math
from typing import Literal

import pytest
import torch

from puma_plugin.experiments.running.training import _schedulers
from puma_plugin.experiments.settings.config import OptimizerConfig


def rates(schedule: Literal["cosine", "step", "constant"], warmup: float = 0.0, step_epochs: int = 2) -> list[float]:
    """Factors of the base rate over 6 epochs of 4 steps."""
    config = OptimizerConfig(lr=1.0, schedule=schedule, warmup_epochs=warmup, step_epochs=step_epochs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler = _schedulers({"trunk_optimizer": optimizer}, config, 4, 24)["trunk_scheduler_by_iteration"]
    seen = []
    for _ in range(24):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_falls_from_one_to_zero() -> None:
    assert rates("cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 24)) for step in range(24)])


def test_step_halves_after_its_epochs() -> None:
    assert rates("step") == [1.0] * 8 + [0.5] * 8 + [0.25] * 8


def test_constant_stays() -> None:
    assert rates("constant") == [1.0] * 24


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_warmup_rises_linearly_and_then_the_schedule_runs(schedule: Literal["cosine", "step", "constant"]) -> None:
    seen = rates(schedule, warmup=1.5)
    assert seen[:6] == pytest.approx([step / 6 for step in range(1, 7)])
    assert max(seen) == 1.0
    if schedule == "cosine":
        assert seen[6:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 18)) for step in range(18)])
    else:
        assert seen[6:] == rates(schedule)[6:]
