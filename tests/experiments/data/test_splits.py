"""From a configuration to training, held-out and test images: all kinds of data, on real files."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puma_plugin.cli.main import main
from puma_plugin.experiments.data.splits import check_readable, load_splits, load_test
from puma_plugin.experiments.settings.config import DataConfig

FEW_CLASSES = ("StanfordOnlineProducts", "InShop")


def reduced(root: Path, **settings) -> DataConfig:
    """The small trees have a few of the thousands of classes of two datasets."""
    return DataConfig(kind="benchmark", root=str(root), check_counts=False, validation_fraction=0.0, **settings)


def test_the_eight_datasets_below_one_root(benchmark_root: Path) -> None:
    splits = load_splits(reduced(benchmark_root))
    assert splits.names == [
        "CUB", "Cars196", "StanfordOnlineProducts", "InShop", "NABirds", "StanfordDogs", "Flowers102", "FGVCAircraft"
    ]  # fmt: skip
    classes = {name: (part["train"]["classes"], part["test"]["classes"]) for name, part in splits.describe().items()}
    assert classes == {
        "CUB": (100, 100), "Cars196": (98, 98), "StanfordOnlineProducts": (6, 4), "InShop": (3, 3),
        "NABirds": (278, 277), "StanfordDogs": (60, 60), "Flowers102": (51, 51), "FGVCAircraft": (50, 50),
    }  # fmt: skip
    image, _ = splits.train["CUB"][0]
    assert image.mode == "RGB"
    # In-shop's queries are searched for in its gallery only.
    test = splits.test["InShop"]
    assert test.query_mask is not None
    assert test.gallery_mask is not None
    assert (test.query_mask.sum(), test.gallery_mask.sum(), len(test)) == (6, 6, 12)


def test_some_of_the_datasets_by_name(benchmark_root: Path) -> None:
    splits = load_splits(reduced(benchmark_root, names=["Flowers102", "CUB"]))
    assert splits.names == ["CUB", "Flowers102"]
    assert load_test(reduced(benchmark_root, names=["CUB"])).names == ["CUB"]
    with pytest.raises(ValueError, match=r"data.names contains 'Birds'; there are CUB, Cars196"):
        load_splits(reduced(benchmark_root, names=["CUB", "Birds"]))


def test_published_counts_are_compared(benchmark_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"StanfordOnlineProducts \(train\): 6 classes are listed in .*, 11,318 are"):
        load_splits(DataConfig(kind="benchmark", root=str(benchmark_root)))
    with pytest.raises(ValueError, match=r"CUB: not found in .*CUB_200_2011.*put it there"):
        load_splits(DataConfig(kind="benchmark", root=str(tmp_path)))
    with pytest.raises(ValueError, match="split is all, but the split of CUB is fixed"):
        load_test(reduced(benchmark_root, names=["CUB"], split="all"))


def test_few_shot_draw_equals_the_file_of_the_command(benchmark_root: Path, tmp_path: Path) -> None:
    names = ["CUB", "FGVCAircraft"]
    arguments = ["datasets", "few-shot", str(benchmark_root), "--out", str(tmp_path), "--shots", "1", "--seed", "5"]
    assert main([*arguments, "--datasets", *names]) == 0
    drawn = load_splits(reduced(benchmark_root, names=names, shots=1, seed=5))
    file = str(tmp_path / "few_shot_1.json")
    read = load_splits(reduced(benchmark_root, names=names, few_shot=file))
    for name in names:
        assert list(drawn.train[name].item_keys) == list(read.train[name].item_keys)
        assert np.bincount(drawn.train[name].targets).tolist() == [1] * len(drawn.train[name].class_names)
        assert len(drawn.test[name]) > len(drawn.test[name].class_names)
    with pytest.raises(ValueError, match=r"data.shots is 4, but the split .* has 1 images per class"):
        load_splits(reduced(benchmark_root, names=names, few_shot=file, shots=4))
    with pytest.raises(ValueError, match="NABirds: the few-shot split holds no such distribution"):
        load_splits(reduced(benchmark_root, names=["NABirds"], few_shot=file))


@pytest.fixture
def damaged(layouts, tmp_path: Path) -> Path:
    """CUB with one file that is no image and one that is gone."""
    truths = layouts.make_cub(tmp_path, sizes=[3] * 200)
    for truth in (truths[0], truths[4]):
        (tmp_path / "CUB_200_2011" / truth.path).unlink()
    (tmp_path / "CUB_200_2011" / truths[0].path).write_bytes(b"no picture")
    return tmp_path


def test_bad_images_raise(damaged: Path) -> None:
    with pytest.raises(ValueError, match=r"CUB \(train\): 1 of 300 files are missing, the first is .*Bird_2_0001"):
        load_splits(reduced(damaged, names=["CUB"]))


def test_bad_images_are_skipped_counted_and_listed(damaged: Path) -> None:
    with pytest.warns(UserWarning, match="2 of 300 images are left out"):
        splits = load_splits(reduced(damaged, names=["CUB"], bad_images="skip"))
    reasons = splits.skipped["CUB"]
    assert [Path(key).name for key in reasons] == ["Bird_1_0000_7000.jpg", "Bird_2_0001_7001.jpg"]
    assert [reason.split(":")[0] for reason in reasons.values()] == ["UnidentifiedImageError", "missing"]
    assert len(splits.train["CUB"]) == 298


def test_images_read_after_the_training_are_checked_before_it(write_classes, tmp_path: Path) -> None:
    """Held-out and test images, of all distributions in one message; the training reads its own."""
    for name in ("cats", "dogs"):
        write_classes(tmp_path / name, dict.fromkeys("abcdefgh", 2))
    splits = load_splits(DataConfig(root=str(tmp_path), validation_fraction=0.5))
    reports: list[tuple[int, int]] = []
    check_readable(splits, lambda done, images: reports.append((done, images)))
    assert reports[-1] == (24, 24)
    opened: set[str] = set()
    check_readable(splits, opened=opened)
    assert len(opened) == 24
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})

    Path(splits.train["cats"].paths[0]).write_bytes(b"")
    check_readable(splits)
    held_out, first, second = splits.validation["cats"].paths[1], *list(splits.test["dogs"].paths)[2:4]
    for path in (held_out, first, second):
        Path(path).write_bytes(b"")
    with pytest.raises(ValueError, match="to be tested on cannot be read") as refusal:
        check_readable(splits)
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith(f"cats: 1 of 4 images to be tested on cannot be read, the first is {held_out} (Unid")
    assert lines[1].startswith(f"dogs: 2 of 8 images to be tested on cannot be read, the first is {first} (Unid")
    assert lines[2].endswith("pass bad_images='skip' (--data.bad_images skip) to leave such images out")
    check_readable(splits, opened={held_out, first, second})


def test_images_in_memory_need_no_check() -> None:
    check_readable(load_test(DataConfig(kind="embedded")))


def test_report_of_verify_spares_opening_the_images(damaged: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    verify = ["datasets", "verify", str(damaged), "--open-images", "--report", str(report), "--datasets", "CUB"]
    assert main(verify) == 1
    settings = {"names": ["CUB"], "bad_images": "skip", "known_bad": str(report)}
    with pytest.warns(UserWarning, match="2 of 300 images are left out"):
        assert len(load_splits(reduced(damaged, **settings)).train["CUB"]) == 298


def write_manifest(file: Path, rows: list[dict[str, str]]) -> None:
    with open(file, "w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(folder: Path, distribution: str, classes: str, **more: str) -> list[dict[str, str]]:
    return [
        {"path": f"{distribution}/{name}/{index:02d}.png", "label": name, "distribution": distribution, **more}
        for name in classes
        for index in range(len(list((folder / distribution / name).iterdir())))
    ]


def test_manifest_of_several_distributions(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "images" / "cats", dict.fromkeys("abcdef", 2))
    write_classes(tmp_path / "images" / "dogs", dict.fromkeys("uvwx", 3))
    rows = rows_of(tmp_path / "images", "cats", "abcdef") + rows_of(tmp_path / "images", "dogs", "uvwx")
    write_manifest(tmp_path / "lists.csv", rows)
    settings = {"kind": "manifest", "manifest": str(tmp_path / "lists.csv"), "root": str(tmp_path / "images")}
    splits = load_splits(DataConfig(validation_fraction=0.0, **settings))
    assert splits.names == ["cats", "dogs"]
    assert splits.train["cats"].class_names == ["a", "b", "c"]
    assert splits.test["dogs"].class_names == ["w", "x"]
    assert splits.test["dogs"][0][0].size == (10, 12)
    assert load_splits(DataConfig(names=["dogs"], validation_fraction=0.0, **settings)).names == ["dogs"]
    assert load_test(DataConfig(split="all", **settings)).test["cats"].class_names == list("abcdef")
    with pytest.raises(
        ValueError, match=r"data.split is folders, but .*lists.csv has no column split; set data.split to classes"
    ):
        load_splits(DataConfig(split="folders", **settings))
    (tmp_path / "images" / "cats" / "b" / "01.png").unlink()
    with pytest.raises(ValueError, match=r"cats: 1 of 12 files are missing, the first is .*cats/b/01.png"):
        load_splits(DataConfig(**settings))


def test_manifest_with_a_column_split(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "cats", dict.fromkeys("abcd", 2))
    rows = [
        row | {"split": "train" if row["label"] in "ab" else ("query", "gallery")[row["path"].endswith("01.png")]}
        for row in rows_of(tmp_path, "cats", "abcd")
    ]
    write_manifest(tmp_path / "lists.csv", rows)
    test = load_splits(DataConfig(kind="manifest", manifest=str(tmp_path / "lists.csv"))).test["cats"]
    assert test.query_mask is not None
    assert test.query_mask.tolist() == [True, True, False, False]


def test_train_and_test_folders(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "birds" / "train", {"a": 2, "b": 2, "c": 2})
    write_classes(tmp_path / "birds" / "test", {"x": 3})
    write_classes(tmp_path / "cars", {"k": 2, "l": 2, "m": 3, "n": 4})
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
    # The folder above holds one distribution per subfolder.
    below = load_splits(DataConfig(root=str(tmp_path), names=["cars"], validation_fraction=0.0))
    assert list(below.train["cars"].item_keys) == list(splits.train["cars"].item_keys)
    assert load_test(DataConfig(root=str(tmp_path))).names == ["birds", "cars"]


def test_a_class_called_train(tmp_path: Path, write_classes) -> None:
    """It is taken for a split, and the other classes for strays, unless the split is said to be one of classes."""
    write_classes(tmp_path, dict.fromkeys(("bus", "car", "ship", "train"), 2))
    with pytest.raises(ValueError, match=r"'bus', 'car', 'ship' beside train, .* all classes, .* --data.split classes"):
        load_splits(DataConfig(folders={"vehicles": str(tmp_path)}))
    splits = load_splits(DataConfig(folders={"vehicles": str(tmp_path)}, split="classes"))
    assert splits.test["vehicles"].class_names == ["ship", "train"]


def test_held_out_classes_leave_the_training_set(tmp_path: Path, write_classes) -> None:
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


def test_held_out_classes_follow_the_seed_whatever_else_is_read(tmp_path: Path, write_classes) -> None:
    for name in ("birds", "cars"):
        write_classes(tmp_path / name, dict.fromkeys("abcdefghijklmnop", 2))

    def held_out(seed: int, *names: str) -> list[list[str]]:
        folders = {name: str(tmp_path / name) for name in names}
        splits = load_splits(DataConfig(folders=folders, validation_fraction=0.4, seed=seed))
        return [splits.validation[name].class_names for name in names]

    assert held_out(3, "birds", "cars") == [*held_out(3, "birds"), *held_out(3, "cars")]
    assert len({tuple(*held_out(seed, "cars")) for seed in range(5)}) > 1
    assert any(birds != cars for birds, cars in (held_out(seed, "birds", "cars") for seed in range(5)))


@pytest.mark.parametrize(("fraction", "held_out"), [(0.2, 0), (0.5, 2), (0.75, 0)])
def test_fewer_than_two_classes_are_neither_held_out_nor_left(
    tmp_path: Path, write_classes, fraction: float, held_out: int
) -> None:
    # Of four classes to train on 1, 2 or 3 would be held out.
    write_classes(tmp_path / "cars", dict.fromkeys("abcdefgh", 2))
    splits = load_splits(DataConfig(folders={"cars": str(tmp_path / "cars")}, validation_fraction=fraction))
    assert len(splits.train["cars"].class_names) == 4 - held_out
    assert [len(images.class_names) for images in splits.validation.values()] == [held_out] * (held_out > 0)


def test_shuffled_split_follows_the_seed(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abcdefgh", 2))
    folders = {"cars": str(tmp_path / "cars")}

    def test_classes(seed: int) -> list[str]:
        return load_splits(DataConfig(folders=folders, shuffle_classes=True, seed=seed)).test["cars"].class_names

    assert test_classes(0) == test_classes(0)
    assert len({tuple(test_classes(seed)) for seed in range(5)}) > 1
    config = DataConfig(folders=folders, shuffle_classes=True, seed=3)
    assert load_test(config).test["cars"].class_names == test_classes(3)
    # Whatever else is read: else an evaluation of some distributions would be of classes that were trained on.
    write_classes(tmp_path / "birds", dict.fromkeys("abcdefgh", 2))
    both = DataConfig(folders={"birds": str(tmp_path / "birds"), **folders}, shuffle_classes=True, seed=3)
    assert load_test(both).test["cars"].class_names == test_classes(3)
    assert len({tuple(load_test(replace(both, seed=s)).test["birds"].class_names) for s in range(5)}) > 1
    assert any(load_test(replace(both, seed=seed)).test["birds"].class_names != test_classes(seed) for seed in range(5))


def test_every_class_can_be_the_test_of_an_evaluation(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abc", 2))
    config = DataConfig(folders={"cars": str(tmp_path / "cars")}, split="all")
    splits = load_test(config)
    assert splits.test["cars"].class_names == ["a", "b", "c"]
    assert (splits.train, splits.validation, splits.names) == ({}, {}, ["cars"])
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        load_splits(config)


def test_folders_of_splits_are_no_classes(tmp_path: Path, write_classes) -> None:
    """All images of train/ and test/, as of a manifest with such rows, and not two classes of these names."""
    write_classes(tmp_path / "cars" / "train", dict.fromkeys("abc", 2))
    write_classes(tmp_path / "cars" / "test", dict.fromkeys("cd", 3))
    config = {"folders": {"cars": str(tmp_path / "cars")}, "validation_fraction": 0.0}
    cars = load_test(DataConfig(split="all", **config)).test["cars"]
    assert cars.class_names == ["a", "b", "c", "d"]
    assert np.bincount(cars.targets).tolist() == [2, 2, 5, 3]
    assert {key.split("/")[-2] for key, target in zip(cars.item_keys, cars.targets, strict=True) if target == 2} == {
        "c"
    }
    splits = load_splits(DataConfig(split="classes", **config))
    assert splits.train["cars"].class_names == ["a", "b"]
    assert splits.test["cars"].class_names == ["c", "d"]
    # Beside another folder with images they are classes.
    write_classes(tmp_path / "vehicles", dict.fromkeys(["bus", "train", "van"], 2))
    vehicles = DataConfig(folders={"vehicles": str(tmp_path / "vehicles")}, split="all")
    assert load_test(vehicles).test["vehicles"].class_names == ["bus", "train", "van"]


def test_a_class_with_one_image(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "cars", {"a": 3, "b": 1, "c": 3, "d": 3})
    config = {"folders": {"cars": str(tmp_path / "cars")}, "validation_fraction": 0.0}
    with pytest.raises(ValueError, match=r"cars: class 'b' has 1 image \(.*cars/b/00.png\), 2 are needed"):
        load_splits(DataConfig(**config))
    assert len(load_splits(DataConfig(min_images=1, **config)).train["cars"]) == 4
    write_classes(tmp_path / "cars", {"e": 3})
    with pytest.warns(UserWarning, match="1 of 5 classes have fewer than 2 images"):
        splits = load_splits(DataConfig(small_classes="skip", **config))
    assert splits.train["cars"].class_names == ["a", "c"]
    assert splits.test["cars"].class_names == ["d", "e"]
    assert splits.skipped == {"cars": {"b/00.png": "class 'b' has 1 image, 2 are needed"}}


def test_a_test_without_any_pair_is_refused(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abcd", 1))
    for split in ("auto", "all"):
        with pytest.raises(ValueError, match="distribution cars: no class of its test holds two images"):
            load_test(DataConfig(folders={"cars": str(tmp_path / "cars")}, split=split, min_images=1))


def test_queries_need_a_partner_in_the_gallery(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "query", {"c": 1})
    write_classes(tmp_path / "gallery", {"c": 1, "d": 1})
    assert len(load_test(DataConfig(folders={"shop": str(tmp_path)})).test["shop"]) == 3


def test_errors_name_every_distribution_that_cannot_be_used(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "good", dict.fromkeys("abcd", 2))
    (tmp_path / "empty").mkdir()
    folders = {name: str(tmp_path / name) for name in ("good", "ghosts", "empty")}
    with pytest.raises(ValueError, match=r"(?s)ghosts: .*ghosts is no folder.*empty: .*empty holds no subfolders"):
        load_splits(DataConfig(folders=folders))
    write_classes(tmp_path / "three", dict.fromkeys("abc", 2))
    with pytest.raises(ValueError, match=r"needs 4 classes, 2 for each part, there are 3 in .*three"):
        load_splits(DataConfig(folders={"three": str(tmp_path / "three")}))
    with pytest.raises(ValueError, match=r"data.root is .*nowhere, which is no folder"):
        load_splits(DataConfig(root=str(tmp_path / "nowhere")))


def test_figures_are_plain(tmp_path: Path, write_classes) -> None:
    write_classes(tmp_path / "cars", dict.fromkeys("abcd", 2))
    splits = load_splits(DataConfig(folders={"cars": str(tmp_path / "cars")}))
    assert json.loads(json.dumps(splits.describe())) == splits.describe()
