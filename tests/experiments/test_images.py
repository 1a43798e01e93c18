"""Folders in their true layout on disk, and the splits made of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from puma_plugin.experiments.config import DataConfig
from puma_plugin.experiments.images import ImageSet, read_class_folders, split_classes
from puma_plugin.experiments.splits import load_splits, load_test


def write_classes(folder: Path, classes: Mapping[str, int], suffix: str = ".png", mode: str = "RGB") -> None:
    generator = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{index:02d}{suffix}")


def test_class_folders_in_sorted_order(tmp_path: Path) -> None:
    write_classes(tmp_path, {"zebra": 2, "ant": 3, "mole": 1}, ".jpg")
    (tmp_path / "zebra" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    images = read_class_folders(tmp_path)
    assert images.class_names == ["ant", "mole", "zebra"]
    assert images.targets.tolist() == [0, 0, 0, 1, 2, 2]
    picture, target = images[3]
    assert (picture.mode, picture.size, target) == ("RGB", (10, 12), 1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1}, mode=mode)
    assert read_class_folders(tmp_path)[0][0].mode == "RGB"


def test_subfolders_of_a_class_are_read(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", {"left": 1, "right": 2})
    write_classes(tmp_path, {"b": 1})
    assert read_class_folders(tmp_path).targets.tolist() == [0, 0, 0, 1]


def test_broken_image_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1})
    (tmp_path / "a" / "99.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"99\.png cannot be read"):
        read_class_folders(tmp_path)[1]


def test_refuses_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        read_class_folders(tmp_path / "none")
    with pytest.raises(ValueError, match="no subfolders"):
        read_class_folders(tmp_path)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match="hollow holds no image"):
        read_class_folders(tmp_path)


def _numbered(counts: list[int]) -> ImageSet:
    targets = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(targets), 2, 2, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(targets))
    return ImageSet(pixels, targets, [f"class{index}" for index in range(len(counts))])


def test_first_classes_stay_and_last_are_taken() -> None:
    kept, taken = split_classes(_numbered([2, 1, 3, 2, 1]), 0.5)
    assert kept.class_names == ["class0", "class1"]
    assert taken.class_names == ["class2", "class3", "class4"]
    assert taken.targets.tolist() == [0, 0, 0, 1, 1, 2]
    # The pixels follow their labels.
    assert taken.source[:, 0, 0, 0].tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("classes", "fraction", "taken"), [(10, 0.1, 2), (12, 0.2, 3), (320, 0.1, 32), (4, 0.9, 2), (5, 0.01, 2)]
)
def test_size_of_the_taken_part(classes: int, fraction: float, taken: int) -> None:
    parts = split_classes(_numbered([1] * classes), fraction)
    assert [len(part.class_names) for part in parts] == [classes - taken, taken]


def test_drawn_split_is_disjoint_complete_and_seeded() -> None:
    images = _numbered([1] * 20)
    first, again, other = (
        split_classes(images, 0.3, torch.Generator().manual_seed(seed))[1].class_names for seed in (1, 1, 2)
    )
    kept = split_classes(images, 0.3, torch.Generator().manual_seed(1))[0].class_names
    assert first == again != other
    assert sorted(first + kept) == sorted(images.class_names)


def test_split_needs_four_classes() -> None:
    with pytest.raises(ValueError, match="needs four classes, two for each part; there are 3"):
        split_classes(_numbered([4, 1, 1]), 0.5)


def test_few_shot_and_first() -> None:
    images = _numbered([5, 1, 4])
    few = images.few_shot(2, torch.Generator().manual_seed(0))
    assert np.bincount(few.targets).tolist() == [2, 1, 2]
    assert images.first(2).source[:, 0, 0, 0].tolist() == [0, 1, 5, 6, 7]


def test_train_and_test_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "birds" / "train", {"a": 2, "b": 2, "c": 2})
    write_classes(tmp_path / "birds" / "test", {"x": 3})
    write_classes(tmp_path / "cars", {"k": 1, "l": 2, "m": 3, "n": 4})
    folders = {"birds": str(tmp_path / "birds"), "cars": str(tmp_path / "cars")}
    splits = load_splits(DataConfig(folders=folders, validation_fraction=0.0))
    assert splits.names == ["birds", "cars"]
    assert splits.train["birds"].class_names == ["a", "b", "c"]
    assert splits.test["birds"].class_names == ["x"]
    assert splits.train["cars"].class_names == ["k", "l"]
    assert splits.test["cars"].class_names == ["m", "n"]
    assert splits.validation == {}
    with pytest.raises(ValueError, match=r"cars does not hold train/"):
        load_splits(DataConfig(folders=folders, split="folders"))


def test_held_out_classes_leave_the_training_set(tmp_path: Path) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abcdefghij", 3))
    config = DataConfig(folders={"cars": str(tmp_path / "cars")}, validation_fraction=0.4, shots=2)
    splits = load_splits(config)
    train, held, test = (part["cars"] for part in (splits.train, splits.validation, splits.test))
    assert (len(train.class_names), len(held.class_names), len(test.class_names)) == (3, 2, 5)
    assert not set(train.class_names) & set(held.class_names)
    assert test.class_names == list("fghij")
    # Few-shot touches what is trained on, not what is judged.
    assert (len(train), len(held), len(test)) == (6, 6, 15)
    assert splits.describe()["cars"]["train"] == {"classes": 3, "images": 6}


def test_shuffled_split_follows_the_seed(tmp_path: Path) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abcdefgh", 2))
    folders = {"cars": str(tmp_path / "cars")}

    def test_classes(seed: int) -> list[str]:
        return load_splits(DataConfig(folders=folders, shuffle_classes=True, seed=seed)).test["cars"].class_names

    assert test_classes(0) == test_classes(0)
    assert len({tuple(test_classes(seed)) for seed in range(5)}) > 1


def test_every_class_can_be_the_test_of_an_evaluation(tmp_path: Path) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abc", 2))
    config = DataConfig(folders={"cars": str(tmp_path / "cars")}, split="all")
    splits = load_test(config)
    assert splits.test["cars"].class_names == ["a", "b", "c"]
    assert (splits.train, splits.validation, splits.names) == ({}, {}, ["cars"])
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        load_splits(config)


def test_a_test_without_any_pair_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abcd", 1))
    for split in ("auto", "all"):
        with pytest.raises(ValueError, match="distribution cars: no class of its test holds two images"):
            load_test(DataConfig(folders={"cars": str(tmp_path / "cars")}, split=split))


def test_errors_name_the_distribution(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="distribution ghosts"):
        load_splits(DataConfig(folders={"ghosts": str(tmp_path / "ghosts")}))
