"""The subsets made of a set of images."""

import numpy as np
import torch

from puma_plugin.datasets.embedded import EmbeddedDistribution
from puma_plugin.experiments.data.images import describe, select_classes, split_classes


def numbered(counts: list[int]) -> EmbeddedDistribution:
    """Image i has the value i in its first pixel."""
    targets = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(targets), 2, 2, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(targets))
    return EmbeddedDistribution("numbered", pixels, targets, [f"class{index}" for index in range(len(counts))])


def first_pixels(images: EmbeddedDistribution) -> list[int]:
    return [int(np.asarray(images[index][0])[0, 0, 0]) for index in range(len(images))]


def test_first_classes_stay_and_last_are_taken() -> None:
    kept, taken = split_classes(numbered([2, 1, 3, 2, 1]), 0.5)
    assert kept.class_names == ["class0", "class1"]
    assert taken.class_names == ["class2", "class3", "class4"]
    assert taken.targets.tolist() == [0, 0, 0, 1, 1, 2]
    # The pixels follow their labels.
    assert first_pixels(taken) == [3, 4, 5, 6, 7, 8]


def test_drawn_split_is_disjoint_complete_and_seeded() -> None:
    images = numbered([1] * 20)
    first, again, other = (
        split_classes(images, 0.3, torch.Generator().manual_seed(seed))[1].class_names for seed in (1, 1, 2)
    )
    kept = split_classes(images, 0.3, torch.Generator().manual_seed(1))[0].class_names
    assert first == again != other
    assert sorted(first + kept) == sorted(images.class_names)


def test_selected_classes_and_counts() -> None:
    part = select_classes(numbered([5, 1, 4]), np.array([0, 2]))
    assert part.class_names == ["class0", "class2"]
    assert describe(part) == {"classes": 2, "images": 9}
