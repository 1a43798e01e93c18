"""Data and backbone of the examples: the embedded benchmark, so that every example runs anywhere in a minute.

Put your own datasets in their place: anything with ``targets`` whose items are (image, label).

EXAMPLE_STEPS sets the number of training steps; EXAMPLE_DATA names a file that keeps the generated images.
"""

import functools
import os
from pathlib import Path

import numpy as np
import torch
from puma_plugin.datasets.embedded import load_backbone, load_embedded, to_input
from torch import Tensor, nn
from torch.utils.data import Dataset

STEPS = int(os.environ.get("EXAMPLE_STEPS", "200"))
WIDTH = 128  # of the backbone's features


class Images(Dataset[tuple[Tensor, int]]):
    """Normalised images in memory."""

    def __init__(self, images: np.ndarray, targets: np.ndarray) -> None:
        self.images, self.targets = to_input(images), targets
        self.num_classes = int(targets.max()) + 1

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
    kept = os.environ.get("EXAMPLE_DATA")
    if kept and Path(kept).exists():
        return dict(np.load(kept))
    benchmark = load_embedded()
    arrays = {}
    for split, parts in (("train", benchmark.train), ("test", benchmark.test)):
        for name, part in parts.items():
            arrays[f"{split}/{name}/images"], arrays[f"{split}/{name}/targets"] = part.images, part.targets
    if kept:
        np.savez(kept, **arrays)
    return arrays


def _sets(split: str) -> dict[str, Images]:
    arrays = _arrays()
    names = [key.split("/")[1] for key in arrays if key.startswith(split) and key.endswith("/images")]
    return {name: Images(arrays[f"{split}/{name}/images"], arrays[f"{split}/{name}/targets"]) for name in names}


def train_sets() -> dict[str, Images]:
    """Eight distributions by name: training classes."""
    return _sets("train")


def test_sets() -> dict[str, Images]:
    """The same distributions: test classes, none of which occurs in training."""
    return _sets("test")


def backbone() -> nn.Module:
    """A small pretrained timm VisionTransformer; features of width 128."""
    torch.manual_seed(0)
    return load_backbone()
