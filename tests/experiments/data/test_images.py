"""Images in memory, and the subsets made of a set of images."""

import numpy as np
import pytest
import torch

from puma_plugin.experiments.data.images import ImageArray, describe, first_of_each_class, select_classes, split_classes


def numbered(counts: list[int]) -> ImageArray:
    """Image i has the value i in its first pixel."""
    targets = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(targets), 2, 2, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(targets))
    return ImageArray(pixels, targets, [f"class{index}" for index in range(len(counts))])


def first_pixels(images: ImageArray) -> list[int]:
    return [int(np.asarray(images[index][0])[0, 0, 0]) for index in range(len(images))]


def test_items_are_rgb_images_with_their_class() -> None:
    image, target = numbered([2, 1])[2]
    assert (image.mode, image.size, target) == ("RGB", (2, 2), 1)
    with pytest.raises(ValueError, match="3 images and targets 2 labels"):
        ImageArray(np.zeros((3, 2, 2, 3), np.uint8), np.zeros(2, np.int64), ["a"])


def test_subset_renumbers_classes_and_keeps_keys() -> None:
    part = numbered([2, 1, 3]).subset(np.array([5, 0, 3]))
    assert part.targets.tolist() == [1, 0, 1]
    assert part.class_names == ["class0", "class2"]
    assert part.item_keys == ["5", "0", "3"]
    assert part.subset(np.array([2])).item_keys == ["3"]
    assert first_pixels(part) == [5, 0, 3]


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


def test_first_images_of_each_class() -> None:
    images = numbered([5, 1, 4])
    assert first_pixels(first_of_each_class(images, 2)) == [0, 1, 5, 6, 7]
    mixed = images.subset(np.array([9, 0, 5, 8, 1, 2, 7]))
    assert first_pixels(first_of_each_class(mixed, 2)) == [9, 0, 5, 8, 1]


def test_selected_classes_and_counts() -> None:
    part = select_classes(numbered([5, 1, 4]), np.array([0, 2]))
    assert part.class_names == ["class0", "class2"]
    assert describe(part) == {"classes": 2, "images": 9}
