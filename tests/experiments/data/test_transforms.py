"""The batch transform gives what the per-image one would."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from puma_plugin.experiments.data.transforms import BatchTransform, ToBytes, image_transforms, pad_crop
from puma_plugin.experiments.settings.config import DataConfig

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def test_every_image_is_shifted_by_its_own_offset() -> None:
    images = torch.arange(64 * 3 * 8 * 8, dtype=torch.float32).view(64, 3, 8, 8)
    shifted = pad_crop(images, 2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    offsets = set()
    for image, source in zip(shifted, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y : y + 8, x : x + 8])]
        assert len(found) == 1
        offsets.add(found[0])
    # 64 draws of 25 offsets: nearly all occur, the extremes among them.
    assert len(offsets) > 15
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(5))


def test_no_margin_is_the_evaluation() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    plain = BatchTransform(MEAN, STD)(images)
    by_hand = (images[1, 2].double() / 255 - MEAN[2]) / STD[2]
    torch.testing.assert_close(plain[1, 2].double(), by_hand, atol=1e-6, rtol=1e-6)
    torch.manual_seed(0)
    first = BatchTransform(MEAN, STD, 2)(images)
    torch.manual_seed(0)
    assert torch.equal(first, BatchTransform(MEAN, STD, 2)(images))


def test_batch_and_picture_transforms_agree() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    config = DataConfig(kind="embedded", crop_fraction=1.0)
    _, evaluation = image_transforms(config, 32, MEAN, STD)
    batched = BatchTransform(MEAN, STD)(ToBytes()(picture)[None])[0]
    torch.testing.assert_close(batched, evaluation(picture), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_keeps_the_centre(interpolation: Literal["bilinear", "bicubic"]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    config = DataConfig(root=".", crop_fraction=0.8, interpolation=interpolation)
    _, evaluation = image_transforms(config, 8, MEAN, STD)
    # 8 pixels are 0.8 of a side of 10; of 20 x 10 the middle 8 x 8 are kept.
    resized = picture.resize((20, 10), Image.Resampling[interpolation.upper()])
    kept = torch.from_numpy(np.array(resized)[1:9, 6:14] / 255.0).permute(2, 0, 1)
    expected = (kept - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(evaluation(picture).double(), expected.double(), atol=1e-5, rtol=1e-5)
    other = image_transforms(replace(config, augmentation="none"), 8, MEAN, STD)[0]
    assert torch.equal(other(picture), evaluation(picture))


def test_pictures_are_shifted_by_up_to_an_eighth_over_a_repeated_border() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    config = DataConfig(root=".", augmentation="pad_crop", crop_fraction=1.0)
    train, evaluation = image_transforms(config, 16, MEAN, STD)
    padded = torch.nn.functional.pad(evaluation(Image.fromarray(pixels))[None], (2, 2, 2, 2), mode="replicate")[0]
    windows = [padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    drawn = [train(Image.fromarray(pixels)) for _ in range(60)]
    places = [next(i for i, window in enumerate(windows) if torch.equal(image, window)) for image in drawn]
    assert len(set(places)) > 15


def test_random_crops_keep_the_share_that_is_asked_for() -> None:
    # Brightness rises from left to right; a crop of at least half of the picture spans at least half of that.
    pixels = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 64, 3)).copy()
    config = DataConfig(root=".", crop_scale=0.8, flip=False)
    train, _ = image_transforms(config, 16, [0.0] * 3, [1.0] * 3)
    spans = [image[0].max() - image[0].min() for image in (train(Image.fromarray(pixels)) for _ in range(20))]
    assert min(spans) > 0.6
    assert len(set(spans)) > 1


def test_shapes_for_any_picture() -> None:
    picture = Image.new("RGB", (50, 20))
    for augmentation in ("random_resized_crop", "pad_crop", "none"):
        config = DataConfig(kind="embedded", augmentation=augmentation)
        for transform in image_transforms(config, 24, MEAN, STD):
            assert transform(picture).shape == (3, 24, 24)


def test_flips_can_be_turned_off() -> None:
    # Left half black, right half white: a flip would show.
    pixels = np.zeros((24, 24, 3), dtype=np.uint8)
    pixels[:, 12:] = 255
    for flip, sides in ((True, {False, True}), (False, {True})):
        config = DataConfig(kind="embedded", flip=flip, crop_scale=1.0)
        train, _ = image_transforms(config, 24, MEAN, STD)
        torch.manual_seed(0)
        drawn = [train(Image.fromarray(pixels)) for _ in range(20)]
        assert {bool(image[0, 12, 20] > image[0, 12, 3]) for image in drawn} == sides
