"""What the experiments ask of a set of images, and the subsets made of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from puma_plugin.datasets import DistributionDataset
from puma_plugin.datasets.class_split import divide_classes


class ImageArray(Dataset[Any]):
    """Images of one distribution held in memory.

    Items are (RGB image, int class), as those of a :class:`~puma_plugin.datasets.DistributionDataset`.

    Args:
        pixels: uint8 array (N, H, W, 3).
        targets: (N,) class indices, contiguous from 0.
        class_names: one name per class.
        numbers: (N,) what identifies each image; default: its place.
    """

    # Every image is both.
    query_mask: torch.Tensor | None = None
    gallery_mask: torch.Tensor | None = None

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        targets: NDArray[np.int64],
        class_names: Sequence[str],
        numbers: NDArray[np.int64] | None = None,
    ) -> None:
        if len(pixels) != len(targets):
            raise ValueError(
                f"pixels holds {len(pixels)} images and targets {len(targets)} labels; give one label each"
            )
        self.pixels = pixels
        self.targets = np.asarray(targets, dtype=np.int64)
        self.class_names = list(class_names)
        self.numbers = np.arange(len(targets)) if numbers is None else numbers

    @property
    def item_keys(self) -> list[str]:
        """The images' numbers as strings."""
        return [str(number) for number in self.numbers.tolist()]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), int(self.targets[index])

    def subset(self, indices: NDArray[np.int64]) -> "ImageArray":
        """These images only, in this order; classes are numbered anew from 0, numbers stay."""
        present, targets = np.unique(self.targets[indices], return_inverse=True)
        names = [self.class_names[number] for number in present.tolist()]
        return ImageArray(self.pixels[indices], targets.reshape(-1), names, self.numbers[indices])


ImageSet = DistributionDataset | ImageArray


def describe(images: ImageSet) -> dict[str, int]:
    """Counts for metrics.json."""
    return {"classes": len(images.class_names), "images": len(images)}


def images_of_classes(images: ImageSet) -> dict[str, int]:
    """Class name -> number of images."""
    counts = np.bincount(images.targets, minlength=len(images.class_names)).tolist()
    return dict(zip(images.class_names, counts, strict=True))


def first_of_each_class(images: ImageSet, count: int) -> ImageSet:
    """At most the first `count` images of each class."""
    order = np.argsort(images.targets, kind="stable")
    sizes = np.bincount(images.targets, minlength=len(images.class_names))
    ranks = np.empty(len(images), dtype=np.int64)
    ranks[order] = np.arange(len(images)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return images.subset(np.flatnonzero(ranks < count))


def select_classes(images: ImageSet, classes: NDArray[np.int64]) -> ImageSet:
    """Only the images of these classes."""
    return images.subset(np.flatnonzero(np.isin(images.targets, classes)))


def split_classes(
    images: ImageSet, fraction: float, generator: torch.Generator | None = None
) -> tuple[ImageSet, ImageSet]:
    """Class-disjoint (kept, taken) of two classes at least, as one class has nothing to be told apart from.

    See :func:`puma_plugin.datasets.class_split.divide_classes`.
    """
    kept, taken = divide_classes(len(images.class_names), fraction, generator, least=2)
    return select_classes(images, kept), select_classes(images, taken)
