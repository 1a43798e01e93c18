"""A backbone of the wanted size, or a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from puma_plugin.experiments.contestants.build import build_backbone, build_model
from puma_plugin.experiments.settings.config import ModelConfig


@pytest.mark.parametrize(
    ("backbone", "size", "advice"),
    [
        ("vit_tiny_patch16_224", 250, "patches of 16 pixels; give 240 or 256"),  # timm would cut 10 pixels off
        (
            "vit_small_patch16_dinov3",
            250,
            "patches of 16 pixels; give 240 or 256",
        ),  # timm would stop at the first image
        ("test_vit", 10, "patches of 16 pixels; give 16"),
    ],
)
def test_a_size_that_patches_do_not_fill_is_refused(backbone: str, size: int, advice: str) -> None:
    with pytest.raises(ValueError, match=f"data.image_size is {size}, but {backbone} has {advice}"):
        build_backbone(ModelConfig(backbone=backbone, weights="none"), size)


@pytest.mark.parametrize(("backbone", "size"), [("test_vit", 48), ("test_resnet", 50), ("test_vit", None)])
def test_others_are_built(backbone: str, size: int | None) -> None:
    model = build_backbone(ModelConfig(backbone=backbone, weights="none"), size)
    assert model.num_classes == 0


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """``file(**timm_arguments)``: the weights of a test_vit with a classifier."""

    def make(**arguments: Any) -> str:
        torch.save(timm.create_model("test_vit", **arguments).state_dict(), tmp_path / "weights.pth")
        return str(tmp_path / "weights.pth")

    return make


def test_a_classifier_is_left_over(file: Callable[..., str]) -> None:
    given = torch.load(file(), weights_only=True)
    model = build_backbone(ModelConfig(backbone="test_vit", weights=file()))
    assert {"head.weight", "head.bias"} == given.keys() - model.state_dict().keys()


@pytest.mark.parametrize(
    "name", ["legacy_seresnet18", "efficientvim_m1", "test_efficientnet", "deit_tiny_distilled_patch16_224"]
)
def test_classifiers_of_any_name_are_left_over(name: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    build_backbone(ModelConfig(backbone=name, weights=str(tmp_path / "weights.pth")))


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ({"depth": 7}, "12, 'blocks.6.norm1.weight' first"),  # the model has 6 blocks
        ({"init_values": 0.1}, "12, 'blocks.0.ls1.gamma' first"),
    ],
)
def test_a_file_with_weights_that_would_not_be_computed_is_refused(
    file: Callable[..., str], arguments: dict[str, Any], first: str
) -> None:
    with pytest.raises(ValueError, match=f"has weights that the backbone has not: {first}; give the file of this very"):
        build_backbone(ModelConfig(backbone="test_vit", weights=file(**arguments)))


def test_a_file_that_does_not_fit_says_what(file: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"RuntimeError: Error\(s\) in loading .* size mismatch for cls_token"):
        build_backbone(ModelConfig(backbone="test_vit", weights=file(embed_dim=128, num_heads=2)))
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        ValueError, match=r"pointer\.safetensors could not be loaded .*; give a \.safetensors file, or a"
    ):
        build_backbone(ModelConfig(backbone="test_vit", weights=str(tmp_path / "pointer.safetensors")))


def test_a_backbone_without_room_for_prompts_is_told_by_the_settings() -> None:
    config = ModelConfig(backbone="beit_base_patch16_224", weights="none")
    with pytest.raises(
        ValueError, match=r"beit_base_patch16_224 can carry adapters but no prompts; set model\.pool_size"
    ):
        build_model(config, seed=0)
