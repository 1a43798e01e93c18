"""What timm's models can do must still work with prompts in: features, sizes, patch dropout, checkpointing."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.layers import set_reentrant_ckpt, use_reentrant_ckpt
from torch import Tensor, nn

from puma_plugin import adapt

PROMPTS = {"adapter_dim": 4, "pool_size": 3, "prompt_length": 2}
plain_and_rope = pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])


@pytest.fixture
def adapted(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None]
) -> Callable[..., tuple[nn.Module, Tensor]]:
    def make(name: str = "vit_tiny_patch16_224", **arguments: Any) -> tuple[nn.Module, Tensor]:
        vit = adapt(make_vit(name, **arguments), **PROMPTS)
        randomize(vit)
        return vit, torch.randn(3, 3, 32, 32)

    return make


def test_get_intermediate_layers(adapted: Callable[..., Any]) -> None:
    vit, images = adapted()
    outputs: list[Tensor] = []
    for block in vit.blocks:
        block.register_forward_hook(lambda *args: outputs.append(args[-1]))
    layers = vit.get_intermediate_layers(images, n=[0, 1], reshape=True, return_prefix_tokens=True, norm=True)
    for (patches, prefix), tokens in zip(layers, outputs, strict=True):
        torch.testing.assert_close(patches, vit.norm(tokens)[:, 3:].mT.unflatten(-1, (2, 2)))
        torch.testing.assert_close(prefix, vit.norm(tokens)[:, :1])
    (last,) = vit.get_intermediate_layers(images)
    torch.testing.assert_close(last, outputs[1][:, 3:])


def test_forward_intermediates_as_dictionary(adapted: Callable[..., Any]) -> None:
    vit, images = adapted()
    features, maps = vit.forward_intermediates(images)
    result = vit.forward_intermediates(images, output_dict=True, return_prefix_tokens=True)
    torch.testing.assert_close(result["image_features"], features)
    torch.testing.assert_close(result["image_intermediates"], maps)
    assert [tokens.shape for tokens in result["image_intermediates_prefix"]] == [(3, 1, 192)] * 2
    only = vit.forward_intermediates(images, output_dict=True, intermediates_only=True, stop_early=True, indices=[0])
    assert set(only) == {"image_intermediates"}
    torch.testing.assert_close(only["image_intermediates"], maps[:1])
    by_position = vit.forward_intermediates(images, None, False, False, False, "NCHW", False, True)
    torch.testing.assert_close(by_position["image_intermediates"], maps)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NLC', got 'NHWC'"):
        vit.forward_intermediates(images, output_fmt="NHWC")


def test_pruned_and_reheaded_model(adapted: Callable[..., Any]) -> None:
    vit, images = adapted()
    vit.prune_intermediate_layers([0])
    vit.reset_classifier(7, "token")
    assert len(vit.adapters()) == 2
    assert vit(images).shape == (3, 7)


@plain_and_rope
def test_dynamic_image_size(make_vit: Callable[..., nn.Module], randomize: Callable, name: str) -> None:
    fixed = adapt(make_vit(name, dynamic_img_size=False), **PROMPTS)
    randomize(fixed)
    dynamic = adapt(make_vit(name, dynamic_img_size=True), **PROMPTS)
    dynamic.load_state_dict(fixed.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(dynamic(images), fixed(images))

    seen: list[Tensor] = []
    dynamic.norm_pre.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    larger = torch.randn(2, 3, 48, 64)
    features, maps = dynamic.forward_intermediates(larger)
    prefix = dynamic.num_prefix_tokens
    assert features.shape[1] == prefix + 3 * 4
    assert maps[0].shape[-2:] == (3, 4)
    patches = dynamic.patch_embed(larger).flatten(1, 2)
    prompt = dynamic.prompt_pool((patches.mean(1) + patches.amax(1)) / 2)[0]
    if dynamic.pos_embed is not None:
        prompt = prompt + dynamic.pos_embed[:, 0]
    torch.testing.assert_close(seen[0][:, prefix : prefix + 2], prompt)


@plain_and_rope
def test_input_size_set_after_adapting(adapted: Callable[..., Any], name: str) -> None:
    vit, _ = adapted(name)
    vit.set_input_size(img_size=(48, 32))
    assert vit.forward_features(torch.randn(1, 3, 48, 32)).shape[1] == vit.num_prefix_tokens + 6
    assert all("adapter" in n or "prompt_pool" in n for n, p in vit.named_parameters() if p.requires_grad)


@plain_and_rope
def test_patch_dropout_takes_patches_but_no_prompts(make_vit: Callable[..., nn.Module], name: str) -> None:
    vit = adapt(make_vit(name, patch_drop_rate=0.5, img_size=64), **PROMPTS)
    images = torch.randn(2, 3, 64, 64)
    seen: list[Tensor] = []
    vit.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vit.eval().forward_features(images)
    features = vit.train().forward_features(images)
    whole, dropped = seen
    kept = vit.num_prefix_tokens + 2
    assert whole.shape[1] == kept + 16
    assert dropped.shape[1] == kept + 8
    assert torch.equal(dropped[:, :kept], whole[:, :kept])
    for image in range(2):  # each kept patch token is one of the image's own
        assert (dropped[image, kept:, None] == whole[image, None, kept:]).all(-1).any(-1).all()
    assert features.shape[1] == vit.num_prefix_tokens + 8


@pytest.fixture
def set_reentrant() -> Iterator[Callable[[bool], None]]:
    """timm's switch between torch's two ways of activation checkpointing."""
    before = use_reentrant_ckpt()
    yield set_reentrant_ckpt
    set_reentrant_ckpt(before)


@pytest.mark.parametrize(
    ("name", "reentrant"),
    # timm's Eva passes arguments by name, which the reentrant way does not take.
    [("vit_tiny_patch16_224", False), ("vit_tiny_patch16_224", True), ("vit_small_patch16_dinov3", False)],
)
@pytest.mark.parametrize("own_generator", [False, True])
def test_gradient_checkpointing_recomputes_with_the_same_gates(
    adapted: Callable[..., Any], set_reentrant: Callable[[bool], None], name: str, reentrant: bool, own_generator: bool
) -> None:
    set_reentrant(reentrant)
    vit, images = adapted(name)
    images = torch.cat([images] * 3)
    vit.train()
    gradients = []
    for enable in (False, True):
        vit.set_grad_checkpointing(enable)
        vit.zero_grad()
        torch.manual_seed(3)
        if own_generator:
            vit.gate_generator = torch.Generator().manual_seed(8)
        loss = vit(images).square().mean() + 0.1 * vit(images).mean()  # two passes before the backward
        torch.rand(5)  # the generator moves on in between
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in vit.trainable_parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_attention_mask_over_patches_and_prompts(adapted: Callable[..., Any]) -> None:
    vit, images = adapted()
    tokens = 1 + 2 + 4
    everything = torch.ones(tokens, tokens, dtype=torch.bool)
    torch.testing.assert_close(vit(images, attn_mask=everything), vit(images))
    # Without attention to the prompts the class token of the first block cannot depend on them.
    hidden = everything.clone()
    hidden[:, 1:3] = False
    hidden[1:3, 1:3] = True
    before = vit(images, attn_mask=hidden)
    with torch.no_grad():
        vit.prompt_pool.prompts.mul_(-3)
    torch.testing.assert_close(vit(images, attn_mask=hidden), before)
    assert not torch.allclose(vit(images), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(adapted: Callable[..., Any], dtype: torch.dtype) -> None:
    vit, images = adapted()
    exact = vit(images)
    with torch.autocast("cpu", dtype=dtype):
        rounded = vit(images)
        weights = vit.prompt_weights(images)
        loss = rounded.float().square().mean()
    assert weights.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in vit.trainable_parameters())
