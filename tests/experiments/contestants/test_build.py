"""A backbone of the wanted size, or a sentence."""

import pytest

from puma_plugin.experiments.contestants.build import build_backbone
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
