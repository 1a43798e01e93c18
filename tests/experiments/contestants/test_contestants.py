"""What the contestants train, worked out by hand on small models with random weights."""

import copy
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

from puma_plugin.experiments.contestants.build import build_model, trainable_count
from puma_plugin.experiments.contestants.lora import add_lora
from puma_plugin.experiments.contestants.vpt import add_visual_prompts
from puma_plugin.experiments.settings.config import ModelConfig

LENGTH = 3


def make_vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    """Two blocks, 32 pixels, every tensor random."""
    vit = timm.create_model(name, **{"num_classes": 0, "depth": 2, "img_size": 32, **arguments})
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.ndim == 1 or parameter.std() < 1e-3:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return vit.eval()


def trainable(vit: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in vit.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_stand_after_the_class_token_and_are_gone_at_the_end(deep: bool) -> None:
    vit: Any = make_vit()
    plain = copy.deepcopy(vit)
    images = torch.randn(2, 3, 32, 32)
    add_visual_prompts(vit, LENGTH, deep)
    prompts = trainable(vit)
    assert list(prompts) == ["blocks.0.visual_prompts", "blocks.1.visual_prompts"][: 2 if deep else 1]
    # 16 x 16 patches, width 192.
    bound = (6 / (3 * 256 + 192)) ** 0.5
    assert 0.5 * bound < prompts["blocks.0.visual_prompts"].abs().max() <= bound
    with torch.no_grad():
        tokens = plain._pos_embed(plain.patch_embed(images))
        first = prompts["blocks.0.visual_prompts"].expand(2, -1, -1)
        tokens = plain.blocks[0](torch.cat([tokens[:, :1], first, tokens[:, 1:]], dim=1))
        if deep:
            tokens[:, 1 : 1 + LENGTH] = prompts["blocks.1.visual_prompts"]
        tokens = plain.blocks[1](tokens)
        tokens = torch.cat([tokens[:, :1], tokens[:, 1 + LENGTH :]], dim=1)
        expected = plain.forward_head(plain.norm(tokens))
        torch.testing.assert_close(vit(images), expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
        ("vit_base_patch16_siglip_gap_224", {}),
        ("eva02_tiny_patch14_224", {"img_size": 28}),
    ],
)
def test_prompts_in_other_families(name: str, arguments: dict[str, int]) -> None:
    vit: Any = make_vit(name, **arguments)
    images = torch.randn(2, 3, *vit.patch_embed.img_size)
    shape = vit.forward_features(images).shape
    add_visual_prompts(vit, LENGTH, deep=True).train()
    assert not vit.blocks[0].attn.training
    features = vit.forward_features(images)
    assert features.shape == shape
    vit.forward_head(features).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trainable(vit).values())


def test_a_copy_with_prompts_is_the_same_model() -> None:
    vit = add_visual_prompts(make_vit(), LENGTH, deep=True)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(copy.deepcopy(vit)(images), vit(images))


def test_models_without_room_for_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="VPT needs a model with room for prompt tokens"):
        add_visual_prompts(make_vit("beit_base_patch16_224"), LENGTH, deep=False)


def test_lora_adds_b_a_to_the_attention() -> None:
    vit: Any = make_vit()
    plain = copy.deepcopy(vit)
    images = torch.randn(2, 3, 32, 32)
    add_lora(vit, rank=4, alpha=8.0)
    torch.testing.assert_close(vit(images), plain(images))
    weights = trainable(vit)
    assert sum(weight.numel() for weight in weights.values()) == 2 * 4 * (192 + 3 * 192)
    with torch.no_grad():
        for index in range(2):
            a, b = (weights[f"blocks.{index}.attn.qkv.lora_{letter}.default.weight"] for letter in "AB")
            b.normal_(std=0.1)
            plain.blocks[index].attn.qkv.weight += 8.0 / 4 * b @ a
    torch.testing.assert_close(vit(images), plain(images), atol=1e-4, rtol=1e-4)


def test_lora_is_refused_where_it_would_have_no_effect() -> None:
    # BEiT's attention adds its bias by hand and reads the weight without calling the layer.
    with pytest.raises(ValueError, match=r"reads the weights of blocks\.0\.attn\.qkv without calling the layer"):
        add_lora(make_vit("beit_base_patch16_224"), rank=2, alpha=2.0)


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "puma_plugin\[contestants\]"'):
        add_lora(make_vit(), rank=2, alpha=2.0)


def test_adaptformer_is_our_adapters_without_drop_and_pool() -> None:
    trunk, _ = build_model(ModelConfig(backbone="embedded", method="adaptformer", adapter_dim=8, drop=0.5), seed=0)
    assert {adapter.drop for adapter in trunk.adapters()} == {0.0}  # type: ignore[operator]
    assert trunk.prompt_pool is None


@pytest.mark.parametrize("blocks", [[0], []])
def test_which_blocks_have_adapters(blocks: list[int]) -> None:
    config = ModelConfig(backbone="embedded", adapter_dim=8, pool_size=4, prompt_length=2, blocks=blocks)
    trunk, head = build_model(config, seed=0)
    width = head.linear.in_features  # type: ignore[union-attr]
    expected = len(blocks) * 2 * 2 * width * 8 + 4 * 2 * width + 2 * 4 * width + width * 128 + 128
    assert trainable_count(trunk, head) == expected


def test_all_contestants_start_with_the_same_head() -> None:
    heads = [
        build_model(ModelConfig(backbone="embedded", method=method), seed=3)[1].linear.weight  # type: ignore[union-attr]
        for method in ("puma", "adaptformer", "lora", "vpt_deep", "full", "linear")
    ]
    assert all(torch.equal(head, heads[0]) for head in heads)
