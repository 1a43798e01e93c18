"""How pictures become the input of a run's network."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import default_collate

from puma_plugin.experiments.contestants.build import input_properties
from puma_plugin.experiments.data.transforms import BatchTransform, ToBytes, image_transforms, in_batches
from puma_plugin.experiments.running.processes import Processes
from puma_plugin.experiments.settings.config import TrainConfig


class Collate:
    """Stacks (image, label) items and applies a batch transform to the images; it can be sent to worker processes."""

    def __init__(self, batch_transform: BatchTransform | None) -> None:
        self.batch_transform = batch_transform

    def __call__(self, items: list[Any]) -> Any:
        images, labels = default_collate(items)
        return (images if self.batch_transform is None else self.batch_transform(images)), labels


@dataclass(frozen=True)
class Inputs:
    """How pictures become network input: per image (training, evaluation) and per batch (the same)."""

    train_transform: Any
    evaluation_transform: Any
    train_batch: BatchTransform | None
    evaluation_batch: BatchTransform | None


def make_inputs(config: TrainConfig, trunk: nn.Module, processes: Processes) -> Inputs:
    """The transforms of a run. Small images of the embedded benchmark are handled a whole batch at a time."""
    size, mean, std = input_properties(trunk, config.data)
    if in_batches(config.data, size):
        margin = size // 8 if config.data.augmentation == "pad_crop" else 0
        training = BatchTransform(mean, std, margin, processes.rank, processes.world_size)
        return Inputs(ToBytes(), ToBytes(), training, BatchTransform(mean, std))
    train, evaluation = image_transforms(config.data, size, mean, std)
    return Inputs(train, evaluation, None, None)
