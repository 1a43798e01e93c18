"""What a checkpoint holds of models, memories and generators, and when it is taken back."""

from collections.abc import Callable

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory
from small_net import net
from torch import nn

from puma_plugin.trainers.batch_share import BatchShare
from puma_plugin.trainers.training_state import (
    load_model_state,
    memory_places,
    model_state,
    set_memory_places,
    unwrap,
)

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


def test_of_frozen_weights_name_shape_and_type_count_too() -> None:
    def zeros(name: str, rows: int, columns: int, dtype: torch.dtype) -> nn.Module:
        model = nn.Module()
        model.register_parameter(name, nn.Parameter(torch.zeros(rows, columns, dtype=dtype), requires_grad=False))
        return model

    kinds = [("a", 2, 3, torch.half), ("b", 2, 3, torch.half), ("a", 3, 2, torch.half), ("a", 2, 3, torch.bfloat16)]
    assert len({model_state(zeros(*kind))["frozen"] for kind in kinds}) == 4


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, BatchShare])
def test_a_state_is_taken_back(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, other = net(), net()
    model.train()(torch.randn(5, 2)).sum().backward()
    model[2].weight.data.add_(1)
    load_model_state(wrap(other), model_state(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert [p.requires_grad for p in other.parameters()] == [False, False, True, True, True, True]


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
