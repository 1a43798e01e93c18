"""Pictures to network input: per image for files, per batch for the small images of the embedded benchmark."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from puma_plugin.datasets.image_reading import as_rgb
from puma_plugin.experiments.settings.config import DataConfig


class ToBytes:
    """A PIL image as a uint8 tensor (3, H, W), without scaling."""

    def __call__(self, picture: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1)


def pad_crop(images: torch.Tensor, margin: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Shift every image by its own random offset of up to `margin` pixels, repeating the border.

    Args:
        images: (B, C, H, W) float. Offsets come from PyTorch's default generator.
        rank, world_size: offsets are drawn for the images of all processes, and those of this one are taken.
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (margin,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * margin + 1, (2, count * world_size, 1))[:, rank * count : (rank + 1) * count]
    rows = (offsets[0] + torch.arange(height))[:, :, None]
    columns = (offsets[1] + torch.arange(width))[:, None, :]
    samples = torch.arange(count)[:, None, None]
    return padded[samples, :, rows, columns].permute(0, 3, 1, 2).contiguous()


class BatchTransform:
    """Normalises, and in training shifts, a batch of uint8 images.

    Args:
        mean, std: per channel, for values in [0, 1].
        margin: largest shift in pixels; 0 leaves the images where they are.
        rank, world_size: see :func:`pad_crop`.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], margin: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.mean = 255.0 * torch.tensor(mean).view(3, 1, 1)
        self.std = 255.0 * torch.tensor(std).view(3, 1, 1)
        self.margin = margin
        self.place = rank, world_size

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        scaled = (images.float() - self.mean) / self.std
        return pad_crop(scaled, self.margin, *self.place) if self.margin else scaled


def in_batches(config: DataConfig, size: int) -> bool:
    """Whether the images are handled a whole batch at a time, and as they are: the small ones that are embedded."""
    return config.kind == "embedded" and size == 32 and config.augmentation != "random_resized_crop"


class AsEvaluated:
    """A picture of any size and mode as the evaluation of a run gives it to the network: (3, size, size) float32.

    Args:
        config: of the run.
        size, mean, std: of the network's input.
    """

    def __init__(self, config: DataConfig, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.size = size if in_batches(config, size) else None
        self.interpolation = InterpolationMode(config.interpolation)
        self.batch = BatchTransform(mean, std)
        self.single = image_transforms(config, size, mean, std)[1]

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """The network's input.

        Raises:
            TypeError: what is given is no PIL image.
        """
        if not isinstance(picture, Image.Image):
            raise TypeError(f"give a PIL image, such as PIL.Image.open(path), got {type(picture).__name__}")
        picture = as_rgb(picture)
        if self.size is None:
            return self.single(picture)
        # Of the right size it is taken as it is.
        resized = transforms.functional.resize(picture, [self.size, self.size], self.interpolation)
        return self.batch(ToBytes()(resized)[None])[0]


def image_transforms(
    config: DataConfig, size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[transforms.Compose, transforms.Compose]:
    """The (training, evaluation) transforms for pictures of any size."""
    interpolation = InterpolationMode(config.interpolation)
    finish = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    centre = [
        transforms.Resize(round(size / config.crop_fraction), interpolation=interpolation),
        transforms.CenterCrop(size),
    ]
    if config.augmentation == "random_resized_crop":
        flip = [transforms.RandomHorizontalFlip()] if config.flip else []
        crop = transforms.RandomResizedCrop(size, scale=(config.crop_scale, 1.0), interpolation=interpolation)
        train = [crop, *flip]
    elif config.augmentation == "pad_crop":
        train = [
            transforms.Resize((size, size), interpolation=interpolation),
            transforms.RandomCrop(size, padding=size // 8, padding_mode="edge"),
        ]
    else:
        train = centre
    return transforms.Compose([*train, *finish]), transforms.Compose([*centre, *finish])
