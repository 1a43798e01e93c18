"""Every family of timm models that can be adapted, with random weights and reduced depth."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

from puma_plugin import adapt, eject

LENGTH = 2
# Frozen branches may be computed by other operators than before.
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}


class Case(NamedTuple):
    """A model, how to make it small, its tokens before the patches, and whether the class token has a position."""

    name: str
    prefix: int
    class_position: bool
    arguments: dict[str, Any] = {}  # noqa: RUF012  (never changed)


OWN_SIZE = {"img_size": None, "depth": 1}
FULL = [
    Case("vit_tiny_patch16_224", 1, True, OWN_SIZE),
    Case("vit_tiny_patch16_384", 1, True, OWN_SIZE),
    Case("vit_small_patch16_224", 1, True, OWN_SIZE),
    Case("vit_small_patch16_384", 1, True),
    Case("vit_base_patch16_224", 1, True),
    Case("vit_base_patch16_384", 1, True),
    Case("deit_tiny_distilled_patch16_224", 2, True),
    Case("deit3_small_patch16_224", 1, False),
    Case("vit_small_patch14_dinov2", 1, True, {"img_size": 28}),
    Case("vit_small_patch14_reg4_dinov2", 5, False, {"img_size": 28}),
    Case("vit_xsmall_patch16_clip_224", 1, True),
    Case("vit_base_patch16_siglip_224", 0, False),
    Case("vit_base_patch16_siglip_gap_224", 0, False),
    Case("vit_little_patch16_reg4_gap_256", 4, False),
    Case("flexivit_small", 1, False),
    Case("eva02_tiny_patch14_224", 1, True, {"img_size": 28}),
    Case("vit_small_patch16_dinov3", 5, False),
    Case("vit_small_patch16_rope_mixed_224", 1, False),
    Case("vit_tiny_r_s16_p8_224", 1, True, {"img_size": 64}),
    Case("vit_pe_core_tiny_patch16_384", 1, True),
]
ADAPTERS_ONLY = [
    Case("beit_base_patch16_224", 1, True),
    Case("beitv2_base_patch16_224", 1, True),
    Case("naflexvit_base_patch16_gap", 0, False),
    Case("vit_relpos_small_patch16_224", 0, False),
    Case("vit_srelpos_small_patch16_224", 0, False),
]
full = pytest.mark.parametrize("case", FULL, ids=[case.name for case in FULL])
every = pytest.mark.parametrize("case", FULL + ADAPTERS_ONLY, ids=[case.name for case in FULL + ADAPTERS_ONLY])


def images_for(vit: nn.Module) -> Tensor:
    size = getattr(getattr(vit, "patch_embed", None), "img_size", None) or (32, 32)
    return torch.randn(2, 3, *size)


@contextmanager
def input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    yield seen
    handle.remove()


def snapshot(vit: nn.Module) -> dict[str, Any]:
    """All that makes up a model: classes, flags, attributes, and bit patterns of the weights."""
    plain = (bool, int, float, str, tuple, type(None))
    modules = {
        name: (type(m), list(vars(m)), list(m._modules), {k: v for k, v in vars(m).items() if isinstance(v, plain)})
        for name, m in vit.named_modules()
    }
    weights = {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in vit.named_parameters()}
    return {"modules": modules, "weights": weights, "buffers": {n: b.clone() for n, b in vit.named_buffers()}}


@every
def test_without_prompts_the_output_is_the_frozen_models(make_vit: Callable[..., nn.Module], case: Case) -> None:
    vit = make_vit(case.name, **case.arguments)
    original = type(vit)
    images = images_for(vit)
    names = list(vit.state_dict())
    with torch.no_grad():
        expected = vit.forward_features(images), vit(images)
        adapt(vit, adapter_dim=4, pool_size=0)
        torch.testing.assert_close((vit.forward_features(images), vit(images)), expected, **ROUNDING)
    assert isinstance(vit, original)
    assert [name for name in vit.state_dict() if "adapter" not in name] == names


@full
def test_prompts_enter_at_the_right_place_and_leave_again(make_vit: Callable[..., nn.Module], case: Case) -> None:
    vit = make_vit(case.name, **case.arguments)
    images = images_for(vit)
    assert vit.num_prefix_tokens == case.prefix
    with torch.no_grad(), input_of(vit.norm_pre) as seen, input_of(vit.patch_embed) as embedded:
        frozen = vit.forward_features(images)
        adapt(vit, adapter_dim=4, pool_size=3, prompt_length=LENGTH)
        seen.clear(), embedded.clear()
        features = vit.forward_features(images)
        eject(vit)
        vit.forward_features(images)
        (tokens, plain), start = seen, case.prefix
    assert features.shape == frozen.shape
    assert not torch.allclose(features, frozen)
    assert torch.equal(tokens[:, :start], plain[:, :start])
    assert torch.equal(tokens[:, start + LENGTH :], plain[:, start:])
    assert len(embedded) == 2  # one patch embedding per pass


@full
def test_prompts_have_the_position_of_the_class_token(make_vit: Callable[..., nn.Module], case: Case) -> None:
    vit = adapt(make_vit(case.name, **case.arguments), adapter_dim=4, pool_size=3, prompt_length=LENGTH)
    images = images_for(vit)
    with torch.no_grad(), input_of(vit.norm_pre) as seen:
        vit.forward_features(images)
        patches = vit.patch_embed(images).flatten(1, -2)
        expected = vit.prompt_pool((patches.mean(1) + patches.amax(1)) / 2)[0]
        if case.class_position:
            assert vit.pos_embed[0, 0].abs().max() > 0
            expected = expected + vit.pos_embed[0, 0]
    torch.testing.assert_close(seen[0][:, case.prefix : case.prefix + LENGTH], expected)


@full
def test_prompts_are_removed_after_the_last_norm(make_vit: Callable[..., nn.Module], case: Case) -> None:
    vit = adapt(make_vit(case.name, **case.arguments), adapter_dim=4, pool_size=3, prompt_length=LENGTH)
    outputs: list[Tensor] = []
    vit.norm.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        features = vit.forward_features(images_for(vit))
    assert torch.equal(features[:, : case.prefix], outputs[0][:, : case.prefix])
    assert torch.equal(features[:, case.prefix :], outputs[0][:, case.prefix + LENGTH :])


@every
def test_gradients_reach_every_trainable_tensor_and_no_frozen_one(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None], case: Case
) -> None:
    vit = make_vit(case.name, **case.arguments)
    prompts = {"pool_size": 3, "prompt_length": LENGTH} if case in FULL else {"pool_size": 0}
    adapt(vit, adapter_dim=4, drop=0.0, **prompts).train()
    randomize(vit)
    vit(images_for(vit)).square().sum().backward()
    own = {name for name, _ in vit.named_parameters() if "adapter" in name or "prompt_pool" in name}
    assert len(own) == 4 * len(vit.blocks) + (3 if case in FULL else 0)
    assert {name for name, p in vit.named_parameters() if p.requires_grad} == own
    assert {name for name, p in vit.named_parameters() if p.grad is not None and p.grad.abs().max() > 0} == own


@every
def test_eject_restores_everything(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None], case: Case
) -> None:
    vit = make_vit(case.name, **case.arguments)
    # An uncommon state, so that "restored" differs from "everything set alike".
    vit.blocks[0].train()
    vit.blocks[0].norm1.weight.requires_grad_(False)
    before = snapshot(vit)
    prompts = {"pool_size": 3, "prompt_length": LENGTH} if case in FULL else {"pool_size": 0}
    adapt(vit, adapter_dim=4, **prompts).train()
    randomize(vit)
    vit(images_for(vit)).sum().backward()
    assert eject(vit) is vit
    after = snapshot(vit)
    assert after["modules"] == before["modules"]
    torch.testing.assert_close(after["weights"], before["weights"], rtol=0, atol=0)
    torch.testing.assert_close(after["buffers"], before["buffers"], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in vit.parameters())


@full
def test_intermediates_are_as_the_frozen_models_in_shape_and_hold_no_prompts(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None], case: Case
) -> None:
    vit = make_vit(case.name, **case.arguments)
    images = images_for(vit)
    with torch.no_grad():
        frozen = vit.forward_intermediates(images)
        adapt(vit, adapter_dim=4, pool_size=3, prompt_length=LENGTH)
        randomize(vit)
        outputs: list[Tensor] = []
        for block in vit.blocks:
            block.register_forward_hook(lambda *args: outputs.append(args[-1]))
        features, maps = vit.forward_intermediates(images)
        assert features.shape == frozen[0].shape
        assert [m.shape for m in maps] == [m.shape for m in frozen[1]]
        for m, tokens in zip(maps, outputs, strict=True):
            torch.testing.assert_close(m.flatten(2).mT, tokens[:, case.prefix + LENGTH :])
        torch.testing.assert_close(features, vit.forward_features(images))
        sequences = vit.forward_intermediates(images, output_fmt="NLC", intermediates_only=True, norm=True)
        torch.testing.assert_close(sequences[-1], features[:, case.prefix :])
        if case.prefix:
            (both,) = vit.forward_intermediates(images, [0], return_prefix_tokens=True, intermediates_only=True)
            torch.testing.assert_close(both[0], maps[0])
            torch.testing.assert_close(both[1], outputs[0][:, : case.prefix])


def test_a_block_in_two_places_is_refused_before_anything_is_changed(make_vit: Callable[..., nn.Module]) -> None:
    """As in ALBERT. A copy has the same weights and adapters of its own."""
    vit = make_vit()
    vit.blocks[1] = vit.blocks[0]
    before, images = snapshot(vit), images_for(vit)
    with pytest.raises(ValueError, match=r"blocks\[1\] of this \w+ is blocks\[0\] again, .* put copies there"):
        adapt(vit, adapter_dim=4)
    assert snapshot(vit)["modules"] == before["modules"]
    with torch.no_grad():
        expected = vit(images)
        vit.blocks[1] = copy.deepcopy(vit.blocks[0])
        adapt(vit, adapter_dim=4, pool_size=0)
        torch.testing.assert_close(vit(images), expected, **ROUNDING)
    assert len(vit.adapters()) == 2 * len(vit.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL + ADAPTERS_ONLY, ids=[case.name for case in FULL + ADAPTERS_ONLY])
def test_at_full_depth_and_size(case: Case) -> None:
    vit = timm.create_model(case.name).eval()
    images = images_for(vit)
    with torch.no_grad():
        expected = vit(images)
        adapt(vit, pool_size=0)
        torch.testing.assert_close(vit(images), expected, **ROUNDING)
        eject(vit)
        assert torch.equal(vit(images), expected)
        if case in FULL:
            adapt(vit)
            assert vit(images).shape == expected.shape
