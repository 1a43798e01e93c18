"""The shipped backbone: small, whole, a plain timm model, and no worse than its raw input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models.vision_transformer import VisionTransformer

from puma_plugin.datasets.embedded import IMAGE_MEAN, IMAGE_STD, load_backbone, to_input
from puma_plugin.datasets.embedded.backbone import WEIGHTS, build_backbone, fingerprint
from puma_plugin.datasets.embedded.benchmark import _generate


def test_is_small_half_precision_and_documented() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000
    with safe_open(WEIGHTS, framework="pt") as opened:
        metadata = opened.metadata()
        assert {opened.get_tensor(name).dtype for name in opened.keys()} == {torch.float16}  # noqa: SIM118
    assert int(metadata["steps"]) > 0
    assert {"sha256", "settings", "torch", "timm", "numpy"} <= set(metadata)


def test_is_a_plain_timm_vit_with_the_class_token() -> None:
    model = load_backbone()
    assert type(model) is VisionTransformer
    assert not model.training
    assert len(model.blocks) == 6
    assert model.blocks[0].attn.num_heads == 4
    assert model.num_prefix_tokens == 1
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    config = resolve_data_config({}, model=model)
    assert (config["input_size"], config["mean"], config["std"]) == ((3, 32, 32), IMAGE_MEAN, IMAGE_STD)


def test_features_find_neighbours_better_than_pixels_do() -> None:
    part = _generate("contour", 0)[1]
    pixels = to_input(part.images)
    with torch.no_grad():
        features = load_backbone()(pixels)

    def recall(vectors: torch.Tensor) -> float:
        vectors = torch.nn.functional.normalize(vectors.flatten(1))
        similarity = vectors @ vectors.T
        similarity.fill_diagonal_(-2)
        nearest = part.targets[similarity.argmax(dim=1).numpy()]
        return float((nearest == part.targets).mean())

    assert recall(features) > 2 * recall(pixels)


def test_input_is_normalised() -> None:
    images = np.zeros((1, 32, 32, 3), np.uint8)
    images[0, 1, 2] = (255, 0, 51)
    pixels = to_input(images)
    assert pixels.shape == (1, 3, 32, 32)
    assert torch.allclose(pixels[0, :, 1, 2], torch.tensor([1.0, -1.0, -0.6]))
    with pytest.raises(ValueError, match="images must be uint8"):
        to_input(images.astype(np.float32))  # type: ignore[arg-type]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no backbone weights at .*absent\.safetensors"):
        load_backbone(tmp_path / "absent.safetensors")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "short.safetensors"
    file.write_bytes(WEIGHTS.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_backbone(file)


def test_changed_byte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "changed.safetensors"
    shutil.copy(WEIGHTS, file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        load_backbone(file)


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in build_backbone().state_dict().items() if "blocks.5" not in name}
    file = tmp_path / "other.safetensors"
    save_file(tensors, file, {"sha256": fingerprint(tensors), "settings": json.dumps({})})
    with pytest.raises(ValueError, match="another architecture"):
        load_backbone(file)
