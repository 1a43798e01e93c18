"""What of another training is refused before anything of a trainer is changed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_metric_learning.losses import ArcFaceLoss
from small_net import net
from small_run import plain_vit
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, SequentialLR
from torchvision.datasets import ImageFolder

from puma_plugin import adapt
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.models.adapted_vit import find_adapted
from puma_plugin.trainers.batch_share import BatchShare
from puma_plugin.trainers.fitting import (
    data_names,
    names_of_parameters,
    require_fitting_model,
    require_fitting_state,
    require_same_names,
    require_same_order,
)
from puma_plugin.trainers.training_state import model_state


def test_a_state_of_another_model_is_refused() -> None:
    fewer, more = net(), net()
    more.add_module("3", nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"missing \['3.weight'\], not expected \[\], other shape \[\]"):
        require_fitting_model(more, model_state(fewer), "trunk")
    with pytest.raises(ValueError, match=r"missing \[\], not expected \['3.weight'\], other shape \[\]"):
        require_fitting_model(fewer, model_state(more), "trunk")
    with pytest.raises(ValueError, match=r"other shape .*2.weight: \(2, 4\) instead of \(2, 3\)"):
        require_fitting_model(net(3), model_state(net(4)), "trunk")
    other = net()
    for same in (other, nn.DataParallel(other), BatchShare(other)):
        require_fitting_model(same, model_state(net()), "trunk")
    other[0].weight.data[0, 0] += 1
    with pytest.raises(ValueError, match=r"frozen weights of models\['trunk'\] are not those"):
        require_fitting_model(other, model_state(net()), "trunk")


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


def schedules(number: int) -> SequentialLR:
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    parts = [ConstantLR(optimizer) for _ in range(number)]
    return SequentialLR(optimizer, parts, milestones=list(range(1, number)))


def test_another_number_of_schedulers_in_a_row_is_refused() -> None:
    require_fitting_state(schedules(2), schedules(2).state_dict(), "lr_schedulers['a']")
    for before, now in ((3, 2), (2, 3)):
        with pytest.raises(ValueError, match=rf"lr_schedulers\['a'\]: {before} schedulers within it instead of {now}"):
            require_fitting_state(schedules(now), schedules(before).state_dict(), "lr_schedulers['a']")


def test_parameters_are_known_by_name_whatever_shares_the_model_out() -> None:
    model, loss, elsewhere = net(), ArcFaceLoss(3, 2), nn.Parameter(torch.zeros(1))
    groups = [{"params": [model[2].bias, model[2].weight]}, {"params": [elsewhere]}]
    optimizers = {"trunk": torch.optim.SGD(groups), "loss": torch.optim.SGD(loss.parameters())}
    expected = {"trunk": [["trunk.2.bias", "trunk.2.weight"], [""]], "loss": [["metric_loss.W"]]}
    for wrapped in (model, nn.DataParallel(BatchShare(model)), torch.compile(model, backend="eager")):
        assert names_of_parameters(optimizers, {"trunk": wrapped, "metric_loss": loss}) == expected
    # A weight of two owners has one name, whichever of them is given first.
    both = {"a": model, "b": nn.ModuleList([model])}
    for owners in (both, dict(reversed(both.items()))):
        assert names_of_parameters({"o": torch.optim.SGD([model[2].bias])}, owners) == {"o": [["a.2.bias"]]}


def test_another_order_of_parameters_is_refused() -> None:
    stored = {"o": [["trunk.a", "trunk.b"], ["trunk.c"]]}
    require_same_order(stored, {"o": [["trunk.a", "trunk.b"], ["trunk.c"]]})
    with pytest.raises(ValueError, match=r"fit optimizers\['o'\]: group 0 had 'trunk.a' where it has 'trunk.b'"):
        require_same_order(stored, {"o": [["trunk.b", "trunk.a"], ["trunk.c"]]})
    with pytest.raises(ValueError, match=r"group 1 had 'trunk.c' where it has ''"):
        require_same_order(stored, {"o": [["trunk.a", "trunk.b"], [""]]})


def test_a_model_that_was_adapted_in_another_way_is_refused() -> None:
    def adapted(**arguments: Any) -> nn.Module:
        return adapt(plain_vit(), adapter_dim=4, pool_size=3, **arguments)

    torch.manual_seed(0)
    first = adapted(drop=0.25)
    for other in (adapted(drop=0.5), BatchShare(adapted())):
        find_adapted(other).load_state_dict(first.state_dict())  # type: ignore[union-attr]
        require_fitting_model(other, model_state(first), "trunk")
    other = adapted(scale=2.0, paper_batchnorm=True)
    other.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"models\['trunk'\]: scale is 0.1 in .* and 2.0 in .*; paper_batchnorm is F"):
        require_fitting_model(other, model_state(first), "trunk")
    before = model_state(first)
    del before["adaptation"]  # as in checkpoints of earlier versions
    require_fitting_model(other, before, "trunk")
