"""What a run trains at which rate, and the rates over its steps."""

import math
from typing import Literal

import pytest
import timm
import torch
from torch import nn

import puma_plugin
from puma_plugin.experiments.running.optimizers import make_optimizers, make_schedulers
from puma_plugin.experiments.settings.config import OptimizerConfig

RATES = OptimizerConfig(lr=0.25, factor=8.0, proxy_lr=0.5, weight_decay=0.02)


def base_rates(trunk: nn.Module, embedder: nn.Module, loss: nn.Module) -> dict[str, list[float]]:
    optimizers = make_optimizers(trunk, embedder, loss, RATES)
    for optimizer in optimizers.values():
        assert isinstance(optimizer, torch.optim.AdamW)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.02}
    return {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}


@pytest.mark.parametrize(
    ("frozen", "trunk_rates"),
    [
        (0, [0.25]),  # a trunk that is trained as a whole
        (1, [2.0]),  # what was added to a frozen one starts from nothing
        (2, None),  # nothing of it is trained
    ],
)
def test_learning_rates(frozen: int, trunk_rates: list[float] | None) -> None:
    trunk = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for part in trunk[:frozen]:
        part.requires_grad_(False)
    expected = {"embedder_optimizer": [2.0], "metric_loss_optimizer": [0.5]}
    if trunk_rates is not None:
        expected["trunk_optimizer"] = trunk_rates
    assert base_rates(trunk, nn.Linear(2, 2), nn.Linear(2, 2)) == expected
    del expected["metric_loss_optimizer"]
    assert base_rates(trunk, nn.Linear(2, 2), nn.Identity()) == expected  # a loss without weights


def test_learning_rates_of_adapters_and_prompts() -> None:
    trunk = puma_plugin.adapt(timm.create_model("test_vit", num_classes=0), adapter_dim=4)
    optimizer = make_optimizers(trunk, nn.Identity(), nn.Identity(), RATES)["trunk_optimizer"]
    assert [group["name"] for group in optimizer.param_groups] == ["adapters", "prompts"]
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 2.0]
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in trunk.parameters() if p.requires_grad}


def rates(schedule: Literal["cosine", "step", "constant"], warmup: float = 0.0, step_epochs: int = 2) -> list[float]:
    """Factors of the base rate over 6 epochs of 4 steps."""
    config = OptimizerConfig(lr=1.0, schedule=schedule, warmup_epochs=warmup, step_epochs=step_epochs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler = make_schedulers({"trunk_optimizer": optimizer}, config, 4, 24)["trunk_scheduler_by_iteration"]
    seen = []
    for _ in range(24):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_falls_from_one_to_zero() -> None:
    assert rates("cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 24)) for step in range(24)])


def test_cosine_stays_at_zero_behind_its_last_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make_schedulers({"a_optimizer": optimizer}, OptimizerConfig(schedule="cosine", warmup_epochs=0), 1, 2)
    for _ in range(3):
        optimizer.step()
        scheduler["a_scheduler_by_iteration"].step()
    assert optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_warmup_may_last_as_long_as_the_run(schedule: Literal["cosine", "step", "constant"]) -> None:
    assert rates(schedule, warmup=6.0) == pytest.approx([step / 24 for step in range(1, 25)])


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
