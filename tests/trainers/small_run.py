"""A small real training for the tests of the trainer: adapted ViT, head, CurricularFace, AdamW with a schedule."""

import math
import random
from typing import Any

import numpy as np
import timm
import torch
from torch.utils.data import Dataset

import puma_plugin
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.trainers import UnifiedTrainer


class Noisy(Dataset[Any]):
    """Images around class means, with noise from the global generators as augmentations have it."""

    def __init__(self, classes: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.means = torch.randn(classes, 3, 16, 16, generator=generator)
        self.targets = [i % classes for i in range(count)]
        self.poisoned: int | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = self.targets[index]
        noise = 0.3 * torch.randn(3, 16, 16) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        image = self.means[label] + noise
        return image * (math.nan if index == self.poisoned else 1), label


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


class Run:
    """A small real training: adapted ViT, head, CurricularFace, AdamW with a schedule."""

    def __init__(self, seed: int = 0, own_gates: bool = False, **arguments: Any) -> None:
        seed_everything(seed)
        self.parts = {"a": Noisy(4, 22, 1), "b": Noisy(3, 10, 2)}
        self.dataset = UnifiedDataset(self.parts)
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
        )
        puma_plugin.adapt(vit, adapter_dim=4, pool_size=3, prompt_length=2)
        if own_gates:
            vit.gate_generator = torch.Generator().manual_seed(5)
        self.model = UnifiedEmbedder(vit, EmbeddingHead(16, 8))
        self.loss = CurricularFaceLoss(self.dataset.num_classes, 8)
        self.optimizers: dict[str, Any] = {
            "trunk_optimizer": torch.optim.AdamW(self.model.param_groups(1e-3)),
            "metric_loss_optimizer": torch.optim.SGD(self.loss.parameters(), 0.1, momentum=0.9),
        }
        schedulers = {
            "trunk_scheduler_by_iteration": torch.optim.lr_scheduler.CosineAnnealingLR(
                self.optimizers["trunk_optimizer"], 20
            ),
            "metric_loss_scheduler_by_epoch": torch.optim.lr_scheduler.StepLR(
                self.optimizers["metric_loss_optimizer"], 1, 0.5
            ),
        }
        settings = {"dataloader_num_workers": 0, "lr_schedulers": schedulers, "progress": False, **arguments}
        self.trainer = UnifiedTrainer(
            {"trunk": self.model}, self.optimizers, 6, {"metric_loss": self.loss}, self.dataset, **settings
        )

    def state(self) -> dict[str, torch.Tensor]:
        return {**self.model.state_dict(), **{f"loss.{k}": v for k, v in self.loss.state_dict().items()}}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def build(**changes: Any) -> UnifiedTrainer:
    run = Run()
    arguments = {
        "models": {"trunk": run.model},
        "optimizers": run.optimizers,
        "batch_size": 6,
        "loss_funcs": {"metric_loss": run.loss},
        "dataset": run.dataset,
        **changes,
    }
    return UnifiedTrainer(**arguments)


def plain_vit() -> torch.nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )
