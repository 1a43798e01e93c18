"""What a checkpoint holds of models, memories and generators, and when it is taken back."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory
from torch import nn

from puma_plugin.trainers.batch_share import BatchShare
from puma_plugin.trainers.training_state import (
    load_model_state,
    memory_places,
    model_state,
    random_state,
    set_memory_places,
    set_random_state,
    unwrap,
)


def net(width: int = 3) -> nn.Sequential:
    """A frozen layer, a norm with statistics, a trained layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    layers[0].requires_grad_(False)
    return layers


BUFFERS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
TRAINED = {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_trained_weights_and_buffers_are_held_and_of_frozen_ones_a_digest() -> None:
    model = net()
    state = model_state(model)
    assert set(state["tensors"]) == BUFFERS | TRAINED
    assert set(model_state(model, is_frozen=True)["tensors"]) == BUFFERS
    model[2].weight.data.add_(1)
    assert model_state(model)["frozen"] == state["frozen"]
    model[0].weight.data[0, 0] += 1
    assert model_state(model)["frozen"] != state["frozen"]
    with pytest.raises(ValueError, match=r"frozen weights of models\['trunk'\] are not those"):
        load_model_state(model, state, "trunk")


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, BatchShare])
def test_a_state_is_taken_back(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, other = net(), net()
    model.train()(torch.randn(5, 2)).sum().backward()
    model[2].weight.data.add_(1)
    load_model_state(wrap(other), model_state(model), "trunk")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert [p.requires_grad for p in other.parameters()] == [False, False, True, True, True, True]


def test_a_state_of_another_model_is_refused() -> None:
    fewer, more = net(), net()
    more.add_module("3", nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"missing \['3.weight'\], not expected \[\], other shape \[\]"):
        load_model_state(more, model_state(fewer), "trunk")
    with pytest.raises(ValueError, match=r"missing \[\], not expected \['3.weight'\], other shape \[\]"):
        load_model_state(fewer, model_state(more), "trunk")
    with pytest.raises(ValueError, match=r"other shape .*2.weight: \(2, 4\) instead of \(2, 3\)"):
        load_model_state(net(3), model_state(net(4)), "trunk")


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_generator = torch.Generator()


def draws(model: Any) -> list[float]:
    own = torch.rand((), generator=model.gate_generator).item()
    return [random.random(), float(np.random.rand()), torch.rand(()).item(), own]  # noqa: NPY002


def test_generators_go_on_where_they_were() -> None:
    models = {"trunk": Gated()}
    draws(models["trunk"])
    states = random_state(models)
    expected = draws(models["trunk"])
    draws(models["trunk"])
    set_random_state(states, models)
    assert draws(models["trunk"]) == expected
    # A gate generator that the checkpoint does not know is left as it is.
    states[0]["gates"] = {}
    set_random_state(states, models)
    assert draws(models["trunk"])[:3] == expected[:3]


@pytest.mark.parametrize("alike", [True, False])
def test_of_another_number_of_processes_only_those_that_drew_alike_count(alike: bool) -> None:
    models = {"trunk": Gated()}
    (first,) = random_state(models)
    expected = draws(models["trunk"])
    (later,) = random_state(models)
    set_random_state([first, first if alike else later], models)
    assert (draws(models["trunk"]) == expected) == alike


def test_memories_go_on_where_they_were() -> None:
    def losses() -> dict[str, nn.Module]:
        memory = CrossBatchMemory(ContrastiveLoss(), 4, memory_size=8)
        return {"metric_loss": nn.ModuleList([nn.Identity(), memory])}

    first, second = losses(), losses()
    for _ in range(3):
        first["metric_loss"][1](torch.randn(3, 4), torch.tensor([0, 1, 1]))  # type: ignore[index]
    places = memory_places(first)
    assert places == {"metric_loss.1": {"queue_idx": 1, "has_been_filled": True}}
    set_memory_places(second, places)
    assert memory_places(second) == places
    assert memory_places(losses()) == {"metric_loss.1": {"queue_idx": 0, "has_been_filled": False}}


def test_the_model_inside_of_wrappers() -> None:
    model = net()
    for wrapped in (
        model,
        BatchShare(model),
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        nn.DataParallel(torch.compile(BatchShare(model), backend="eager")),
    ):
        assert unwrap(wrapped) is model  # type: ignore[arg-type]
