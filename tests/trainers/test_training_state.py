"""What a checkpoint holds of models, memories and generators, and when it is taken back."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_metric_learning.losses import ArcFaceLoss, ContrastiveLoss, CrossBatchMemory
from torch import nn
from torchvision.datasets import ImageFolder

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.trainers.batch_share import BatchShare
from puma_plugin.trainers.training_state import (
    data_names,
    load_model_state,
    memory_places,
    model_state,
    random_state,
    require_fitting_model,
    require_fitting_state,
    require_same_names,
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
        require_fitting_model(model, state, "trunk")


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
    require_fitting_model(wrap(other), model_state(model), "trunk")
    load_model_state(wrap(other), model_state(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert [p.requires_grad for p in other.parameters()] == [False, False, True, True, True, True]


def test_a_state_of_another_model_is_refused() -> None:
    fewer, more = net(), net()
    more.add_module("3", nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"missing \['3.weight'\], not expected \[\], other shape \[\]"):
        require_fitting_model(more, model_state(fewer), "trunk")
    with pytest.raises(ValueError, match=r"missing \[\], not expected \['3.weight'\], other shape \[\]"):
        require_fitting_model(fewer, model_state(more), "trunk")
    with pytest.raises(ValueError, match=r"other shape .*2.weight: \(2, 4\) instead of \(2, 3\)"):
        require_fitting_model(net(3), model_state(net(4)), "trunk")


def test_states_of_another_loss_or_optimizer_are_refused() -> None:
    few, many = ArcFaceLoss(3, 2), ArcFaceLoss(4, 2)
    require_fitting_state(few, few.state_dict(), "loss_funcs['metric_loss']")
    with pytest.raises(ValueError, match=r"fit loss_funcs\['metric_loss'\]: .* \['W: \(2, 4\) instead of \(2, 3\)'\]"):
        require_fitting_state(few, many.state_dict(), "loss_funcs['metric_loss']")
    with pytest.raises(ValueError, match=r"missing \['W'\], not expected \['centers'\]"):
        require_fitting_state(few, {"centers": few.W}, "loss_funcs['metric_loss']")
    # A buffer may have grown meanwhile.
    for loss, size in ((few, 2), (many, 5)):
        loss.register_buffer("seen", torch.zeros(size))
    grown = {**many.state_dict(), "W": few.W}
    require_fitting_state(few, grown, "loss_funcs['metric_loss']")
    one, two = (
        torch.optim.SGD(groups) for groups in ([few.W], [{"params": [few.W]}, {"params": [many.W, net()[2].bias]}])
    )
    require_fitting_state(two, two.state_dict(), "optimizers['trunk_optimizer']")
    with pytest.raises(ValueError, match=r"optimizers\['a'\]: groups of \[1, 2\] parameters instead of \[1\]; make"):
        require_fitting_state(one, two.state_dict(), "optimizers['a']")
    larger = torch.optim.SGD([few.W, many.W])
    with pytest.raises(ValueError, match=r"optimizers\['a'\]: groups of \[2\] parameters instead of \[1\]; make"):
        require_fitting_state(one, larger.state_dict(), "optimizers['a']")


def test_a_state_fits_a_part_whose_shapes_come_with_its_first_batch() -> None:
    first, second = nn.LazyLinear(2), nn.LazyLinear(2)
    first(torch.randn(3, 5))
    require_fitting_state(second, first.state_dict(), "loss_funcs['metric_loss']")
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weight, first.weight)


def folders(root: Path, names: list[str]) -> UnifiedDataset:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(root / name / "0.png")
    return UnifiedDataset({"things": ImageFolder(str(root))})


def test_names_of_the_data_are_the_same_in_another_place_and_no_others_in_another_order(tmp_path: Path) -> None:
    names = data_names(folders(tmp_path / "here", ["cat", "dog", "owl"]))
    assert names == {"distribution": ["things"], "class": ["things/cat", "things/dog", "things/owl"]}
    require_same_names(names, data_names(folders(tmp_path / "there", ["cat", "dog", "owl"])))
    for others, message in (
        (
            ["cat", "eel", "owl"],
            "class 1 was 'things/dog' in the run that saved the checkpoint and is 'things/eel' now",
        ),
        (
            ["bee", "cat", "dog", "owl"],
            "class 0 was 'things/cat' in the run that saved the checkpoint and is 'things/b",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            require_same_names(names, data_names(folders(tmp_path / "-".join(others), others)))
    # What is added behind moves nothing.
    require_same_names(names, data_names(folders(tmp_path / "more", ["cat", "dog", "owl", "yak"])))
    parts = {name: [(None, 0), (None, 1)] for name in ("a", "b")}
    swapped = dict(reversed(parts.items()))
    with pytest.raises(ValueError, match=r"distribution 0 was 'a' .* and is 'b' now, so that what the loss keeps"):
        require_same_names(data_names(UnifiedDataset(parts)), data_names(UnifiedDataset(swapped)))


def test_a_dataset_that_tells_no_names_is_not_compared() -> None:
    names = data_names(UnifiedDataset({"a": [(None, 0), (None, 1)]}))
    assert data_names([(None, 0)]) == {}
    require_same_names(names, {})
    require_same_names({}, names)
    told = SimpleNamespace(distribution_names=("a",), class_names=("a/0", "a/1"))  # by a dataset of one's own
    assert data_names(told) == names


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


def test_it_is_torchs_generator_by_which_processes_drew_alike() -> None:
    models = {"trunk": Gated()}
    (first,) = random_state(models)
    expected = draws(models["trunk"])
    (later,) = random_state(models)
    for generator, alike in (("python", True), ("torch", False)):
        set_random_state([first, {**first, generator: later[generator]}], models)
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
