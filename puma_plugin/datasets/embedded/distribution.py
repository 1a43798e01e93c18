"""One distribution of the embedded benchmark as a torch dataset."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from puma_plugin.utils.arrays import IntArray


class EmbeddedDistribution(Dataset[tuple[Any, int]]):
    """Images of one distribution and one split, held in memory.

    Args:
        name: the distribution's name, for instance "glyph".
        images: uint8 (N, 32, 32, 3).
        targets: int64 (N,), classes of this split numbered from 0.
        class_names: name of each class.
        transform: applied to the PIL image when an item is read.
        item_keys: what identifies each image; default: its place.

    Items are (PIL image or what ``transform`` makes of it, int class), as those of a
    :class:`~puma_plugin.datasets.DistributionDataset`. ``images`` and ``targets`` give all at once.

    Raises:
        ValueError: if the arrays' shapes or dtypes do not fit, or a target has no name.
    """

    # Every image is both.
    query_mask: torch.Tensor | None = None
    gallery_mask: torch.Tensor | None = None

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        targets: IntArray,
        class_names: Sequence[str],
        transform: Callable[[Image.Image], Any] | None = None,
        item_keys: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (N, height, width, 3), got {images.dtype} {images.shape}")
        if targets.dtype != np.int64 or targets.shape != (len(images),):
            raise ValueError(f"targets must be int64 ({len(images)},), got {targets.dtype} {targets.shape}")
        if len(targets) and (targets.min() < 0 or targets.max() >= len(class_names)):
            raise ValueError(f"targets must lie in 0..{len(class_names) - 1}, got {targets.min()}..{targets.max()}")
        self.name = name
        self.images = images
        self.targets = targets
        self.class_names = list(class_names)
        self.transform = transform
        self.item_keys = [str(place) for place in range(len(images))] if item_keys is None else list(item_keys)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.images[index])
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    def __repr__(self) -> str:
        return f"EmbeddedDistribution({self.name!r}, {len(self)} images, {len(self.class_names)} classes)"

    def subset(self, indices: IntArray) -> "EmbeddedDistribution":
        """These images only, in this order; classes are numbered anew from 0, keys stay."""
        present, targets = np.unique(self.targets[indices], return_inverse=True)
        names = [self.class_names[number] for number in present.tolist()]
        keys = [self.item_keys[index] for index in indices.tolist()]
        return EmbeddedDistribution(self.name, self.images[indices], targets, names, self.transform, keys)
