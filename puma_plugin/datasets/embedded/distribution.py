"""One distribution of the embedded benchmark as a torch dataset."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset


class EmbeddedDistribution(Dataset[tuple[Any, int]]):
    """Images of one distribution and one split.

    Args:
        name: the distribution's name, for instance "glyph".
        images: uint8 (N, 32, 32, 3).
        targets: int64 (N,), classes of this split numbered from 0.
        class_names: name of each class.
        transform: applied to the PIL image when an item is read.

    Items are (PIL image or what ``transform`` makes of it, int class). ``images`` and ``targets`` give all at once.

    Raises:
        ValueError: if the arrays' shapes or dtypes do not fit, or a target has no name.
    """

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        targets: NDArray[np.int64],
        class_names: Sequence[str],
        transform: Callable[[Image.Image], Any] | None = None,
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

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.images[index])
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    def __repr__(self) -> str:
        return f"EmbeddedDistribution({self.name!r}, {len(self)} images, {len(self.class_names)} classes)"

    def select_classes(self, chosen: Sequence[int]) -> "EmbeddedDistribution":
        """The part with these classes, numbered anew from 0 in the order given."""
        renumber = np.full(len(self.class_names), -1, np.int64)
        renumber[list(chosen)] = np.arange(len(chosen))
        targets = renumber[self.targets]
        keep = targets >= 0
        names = [self.class_names[c] for c in chosen]
        return EmbeddedDistribution(self.name, self.images[keep], targets[keep], names, self.transform)
