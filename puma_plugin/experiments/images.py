"""Images with class labels, held as an array or read from files; and the splits made of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})


class ImageSet(Dataset[Any]):
    """Images of one distribution.

    Args:
        source: uint8 array (N, H, W, 3), or N paths of image files.
        targets: (N,) class indices, contiguous from 0.
        class_names: one name per class.

    Items are (PIL image, int class).
    """

    def __init__(self, source: np.ndarray | Sequence[Path], targets: np.ndarray, class_names: Sequence[str]) -> None:
        if len(source) != len(targets):
            raise ValueError(
                f"source holds {len(source)} images and targets {len(targets)} labels; give one label each"
            )
        self.source = source
        self.targets = np.asarray(targets, dtype=np.int64)
        self.class_names = list(class_names)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.picture(index), int(self.targets[index])

    def picture(self, index: int) -> Image.Image:
        """The image as RGB.

        Raises:
            ValueError: if the file is no readable image.
        """
        item = self.source[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item)
        try:
            with Image.open(item) as file:
                return file.convert("RGB")
        except OSError as error:
            raise ValueError(f"{item} cannot be read as an image ({error}); remove or replace the file") from error

    def _take(self, chosen: np.ndarray, targets: np.ndarray, class_names: Sequence[str]) -> "ImageSet":
        source = self.source[chosen] if isinstance(self.source, np.ndarray) else [self.source[i] for i in chosen]
        return ImageSet(source, targets, class_names)

    def select_classes(self, classes: Sequence[int]) -> "ImageSet":
        """Only these classes, renumbered from 0 in the order given."""
        places = np.full(len(self.class_names), -1, dtype=np.int64)
        places[list(classes)] = np.arange(len(classes))
        chosen = np.flatnonzero(places[self.targets] >= 0)
        return self._take(chosen, places[self.targets[chosen]], [self.class_names[index] for index in classes])

    def first(self, count: int) -> "ImageSet":
        """At most the first `count` images of each class."""
        ranks = np.zeros(len(self), dtype=np.int64)
        for index in range(len(self.class_names)):
            members = np.flatnonzero(self.targets == index)
            ranks[members] = np.arange(len(members))
        kept = np.flatnonzero(ranks < count)
        return self._take(kept, self.targets[kept], self.class_names)

    def few_shot(self, shots: int, generator: torch.Generator) -> "ImageSet":
        """At most `shots` images of each class, drawn with `generator`."""
        chosen = []
        for index in range(len(self.class_names)):
            members = np.flatnonzero(self.targets == index)
            order = torch.randperm(len(members), generator=generator).numpy()
            chosen.append(np.sort(members[order[:shots]]))
        kept = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
        return self._take(kept, self.targets[kept], self.class_names)

    def describe(self) -> dict[str, int]:
        """Counts for metrics.json."""
        return {"classes": len(self.class_names), "images": len(self)}


def read_class_folders(folder: Path) -> ImageSet:
    """One class per subfolder, images anywhere below it; classes and files in sorted order.

    Raises:
        ValueError: when the folder is missing, holds no subfolders, or a class holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a folder that holds one subfolder per class")
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder} holds no subfolders; put each class into a subfolder of its own")
    paths: list[Path] = []
    targets: list[int] = []
    for index, entry in enumerate(classes):
        files = sorted(path for path in entry.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not files:
            raise ValueError(f"{entry} holds no image ({', '.join(sorted(EXTENSIONS))}); add some or remove the folder")
        paths += files
        targets += [index] * len(files)
    return ImageSet(paths, np.asarray(targets), [entry.name for entry in classes])


def share(fraction: float, count: int) -> int:
    """ceil(fraction x count), safe from rounding (0.1 x 10 is 1)."""
    return math.ceil(fraction * count - 1e-9)


def split_classes(
    images: ImageSet, fraction: float, generator: torch.Generator | None = None
) -> tuple[ImageSet, ImageSet]:
    """Split into class-disjoint (kept, taken); `taken` gets ceil(fraction x classes), and either part at least two.

    Args:
        generator: draws the taken classes; without one the last classes are taken.

    Raises:
        ValueError: if there are fewer than four classes: a part of one class has nothing to tell apart.
    """
    count = len(images.class_names)
    if count < 4:
        raise ValueError(
            f"a class-disjoint split needs four classes, two for each part; there are {count}: "
            + ", ".join(images.class_names)
        )
    order = torch.randperm(count, generator=generator).tolist() if generator is not None else list(range(count))
    taken = min(max(2, share(fraction, count)), count - 2)
    kept = count - taken
    return images.select_classes(sorted(order[:kept])), images.select_classes(sorted(order[kept:]))
