"""What the contract tests share: images of the embedded benchmark, and small real models."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import puma_plugin
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.datasets.embedded import load_backbone, load_embedded, to_input
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder

SMALL = ("texture", "flag", "photo", "digit")


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Normalised images in memory, with the attributes of torchvision's datasets."""

    def __init__(self, images: Tensor, targets: np.ndarray) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


@pytest.fixture(scope="session")
def embedded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small distributions as one file, generated once for all test processes."""
    root = tmp_path_factory.getbasetemp()
    path = (root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / "embedded.npz"
    if not path.exists():
        benchmark = load_embedded()
        arrays = {}
        for split, parts in (("train", benchmark.train), ("test", benchmark.test)):
            for name in SMALL:
                arrays[f"{split}/{name}/images"] = parts[name].images
                arrays[f"{split}/{name}/targets"] = parts[name].targets
        temporary = path.with_name(f"{os.getpid()}.npz")
        np.savez(temporary, **arrays)
        temporary.replace(path)
    return path


@pytest.fixture(scope="session")
def embedded(embedded_file: Path) -> Callable[[str], UnifiedDataset]:
    """embedded("train") and embedded("test"): four small distributions of the embedded benchmark."""
    arrays = dict(np.load(embedded_file))

    def load(split: str) -> UnifiedDataset:
        return UnifiedDataset(
            {
                name: Images(to_input(arrays[f"{split}/{name}/images"]), arrays[f"{split}/{name}/targets"])
                for name in SMALL
            }
        )

    return load


@pytest.fixture
def pretrained() -> Callable[[], nn.Module]:
    """The shipped backbone, adapted."""
    return lambda: puma_plugin.adapt(load_backbone(), adapter_dim=16, pool_size=4, prompt_length=2)


@pytest.fixture
def tiny() -> Callable[[], UnifiedEmbedder]:
    """A very small adapted model with random weights for 32 x 32 images: trunk and head, embeddings of width 16."""

    def make() -> UnifiedEmbedder:
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=0
        )
        puma_plugin.adapt(vit, adapter_dim=4, pool_size=3, prompt_length=2)
        return UnifiedEmbedder(vit, EmbeddingHead(16, 16))

    return make
