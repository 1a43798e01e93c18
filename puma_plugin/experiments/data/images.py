"""What the experiments ask of a set of images, and the subsets made of one."""

import numpy as np
import torch
from numpy.typing import NDArray

from puma_plugin.datasets import DistributionDataset
from puma_plugin.datasets.class_split import divide_classes
from puma_plugin.datasets.embedded import EmbeddedDistribution

ImageSet = DistributionDataset | EmbeddedDistribution


def describe(images: ImageSet) -> dict[str, int]:
    """Counts for metrics.json."""
    return {"classes": len(images.class_names), "images": len(images)}


def images_of_classes(images: ImageSet) -> dict[str, int]:
    """Class name -> number of images."""
    counts = np.bincount(images.targets, minlength=len(images.class_names)).tolist()
    return dict(zip(images.class_names, counts, strict=True))


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
