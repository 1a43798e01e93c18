"""An adapted model is an ordinary object: it can be copied, pickled, compiled, exported and quantised."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from puma_plugin import adapt, eject

SMALL = {"adapter_dim": 4, "pool_size": 3, "prompt_length": 2}
plain_and_rope = pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def vit(make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None]) -> nn.Module:
    vit = adapt(make_vit(), **SMALL)
    randomize(vit)
    return vit


def by_torch(model: nn.Module, folder: Path) -> nn.Module:
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda model, _: copy.deepcopy(model),
        *(lambda model, _, p=protocol: pickle.loads(pickle.dumps(model, p)) for protocol in (0, 2, 5)),
        by_torch,
    ],
    ids=["deepcopy", "pickle 0", "pickle 2", "pickle 5", "torch.save"],
)
def test_a_copy_is_a_full_and_separate_model(
    vit: nn.Module, images: Tensor, tmp_path: Path, duplicate: Callable[[nn.Module, Path], nn.Module]
) -> None:
    vit.gate_generator = torch.Generator().manual_seed(3)
    twin = duplicate(vit, tmp_path)
    assert type(twin) is type(vit)
    assert repr(twin) == repr(vit)
    assert twin.adaptation == vit.adaptation
    expected = vit(images)
    assert torch.equal(twin(images), expected)
    assert torch.equal(twin.train()(images), vit.train()(images))
    assert not twin.patch_embed.training
    with torch.no_grad():
        for parameter in twin.trainable_parameters():
            parameter.zero_()
    assert torch.equal(vit.eval()(images), expected)
    original = eject(twin)
    assert type(original).__name__ == "VisionTransformer"
    assert all(parameter.requires_grad for parameter in original.parameters())
    assert torch.equal(original(images), eject(vit)(images))


def test_state_dict_round_trip_and_load_of_a_plain_checkpoint(
    vit: nn.Module, make_vit: Callable[..., nn.Module], images: Tensor
) -> None:
    other = make_vit()
    result = vit.load_state_dict(other.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) == {name for name, p in vit.named_parameters() if p.requires_grad}
    twin = adapt(other, **SMALL)
    twin.load_state_dict(vit.state_dict())
    assert torch.equal(twin(images), vit(images))


@plain_and_rope
def test_compile_without_graph_breaks(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None], images: Tensor, name: str
) -> None:
    vit = adapt(make_vit(name), **SMALL)
    randomize(vit)
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), vit(images))
    vit.train()
    gradients = []
    for model in (vit, compiled):
        vit.zero_grad()
        torch.manual_seed(1)
        model(images).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in vit.trainable_parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_export(vit: nn.Module, images: Tensor) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(vit, (images,), dynamic_shapes=({0: batch},))
    larger = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(larger), vit(larger))


def test_dynamic_quantisation_of_the_frozen_part(vit: nn.Module, images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this tool moves to torchao
        small = torch.ao.quantization.quantize_dynamic(vit, {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in type(small.blocks[0].attn.qkv).__module__
    exact, rounded = vit(images), small(images)
    assert 0 < (rounded - exact).norm() < 0.1 * exact.norm()


def test_lora_of_peft_on_top(vit: nn.Module, images: Tensor) -> None:
    peft = pytest.importorskip("peft")
    own = vit.trainable_parameters()
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["qkv"], lora_dropout=0.5), vit)
    for parameter in own:  # peft freezes all that is not LoRA
        parameter.requires_grad_()
    expected = vit.eval()(images)
    vit.train()
    assert vit.blocks[0].attn.qkv.lora_dropout["default"].training
    assert not vit.blocks[0].attn.qkv.base_layer.training
    torch.optim.SGD(vit.param_groups(lr=0.1)).zero_grad()
    vit(images).square().sum().backward()
    with_gradient = {n for n, p in vit.named_parameters() if p.grad is not None}
    assert any("lora_B" in name for name in with_gradient)
    assert all(parameter.grad is not None for parameter in own)
    groups: dict[str, Any] = {group["name"]: group for group in vit.param_groups()}
    assert len(groups["other"]["params"]) == 4
    assert torch.equal(vit.eval()(images), expected)
