"""Few-shot splits: drawing, files, and applying them."""

import hashlib
import json

import numpy as np
import pytest

from puma_plugin.datasets.benchmark import load_benchmark
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.few_shot import SHOTS, FewShotSplit, draw_few_shot, read_few_shot, write_few_shot
from puma_plugin.datasets.image_folder import ImageFolder


@pytest.fixture
def folders(tmp_path, trees):
    for name, classes, per_class in (("birds", 3, 20), ("cars", 2, 5)):
        for c in range(classes):
            for i in range(per_class):
                trees.write_jpeg(tmp_path / name / "train" / f"c{c}" / f"{i:02d}.jpg", c)
    return {name: ImageFolder(tmp_path / name, "train") for name in ("birds", "cars")}


def test_the_draw_by_hand(folders):
    split = draw_few_shot(folders, 4, seed=7)
    assert list(split.images) == ["birds", "cars"]
    assert list(split.images["birds"]) == ["c0", "c1", "c2"]
    keys = [f"train/c1/{i:02d}.jpg" for i in range(20)]
    expected = sorted(keys, key=lambda key: hashlib.sha256(f"7\0birds\0{key}".encode()).digest())[:4]
    assert split.images["birds"]["c1"] == sorted(expected)


@pytest.mark.parametrize("shots", SHOTS)
def test_counts_and_application(folders, shots):
    split = draw_few_shot(folders, shots, seed=0)
    for name, dataset in folders.items():
        part = split.apply(name, dataset)
        size = min(shots, 20 if name == "birds" else 5)
        assert np.bincount(part.targets).tolist() == [size] * len(dataset.class_names)
        assert part.class_names == dataset.class_names
        assert set(part.item_keys) <= set(dataset.item_keys)
        assert all(
            key.split("/")[1] == part.class_names[t] for key, t in zip(part.item_keys, part.targets, strict=True)
        )


def test_fewer_shots_are_part_of_more_and_seeds_differ(folders):
    few, more, other = (draw_few_shot(folders, *a) for a in ((2, 0), (8, 0), (2, 1)))
    for name in folders:
        for class_name in few.images[name]:
            assert set(few.images[name][class_name]) <= set(more.images[name][class_name])
    assert few.images != other.images


def test_the_draw_depends_on_nothing_else(folders):
    """Neither the order of the images nor the other distributions matter."""
    split = draw_few_shot(folders, 4)
    birds = folders["birds"]
    mixed = birds.subset(np.random.default_rng(0).permutation(len(birds)))
    assert draw_few_shot({"birds": mixed}, 4).images["birds"] == split.images["birds"]


def test_files_are_the_same_every_time(folders, tmp_path):
    split = draw_few_shot(folders, 2, seed=3)
    write_few_shot(tmp_path / "out" / "a.json", split)
    write_few_shot(tmp_path / "out" / "b.json", draw_few_shot(folders, 2, seed=3))
    assert (tmp_path / "out/a.json").read_bytes() == (tmp_path / "out/b.json").read_bytes()
    assert read_few_shot(tmp_path / "out/a.json") == split
    content = json.loads((tmp_path / "out/a.json").read_text())
    assert (content["format"], content["version"], content["shots"], content["seed"]) == (
        "puma few-shot split",
        1,
        2,
        3,
    )
    assert str(tmp_path) not in (tmp_path / "out/a.json").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "b.json"]


def test_failed_write_keeps_the_old_file(folders, tmp_path):
    path = tmp_path / "a.json"
    write_few_shot(path, draw_few_shot(folders, 1))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_few_shot(path, FewShotSplit(1, 0, {"birds": {"c0": [b"bytes"]}}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.json"]


def test_images_outside_of_the_folder_are_not_written(folders, tmp_path):
    """Such a file would be refused when it is read."""
    split = FewShotSplit(1, 0, {"birds": {"a": ["../images/0.jpg"]}})
    with pytest.raises(
        DatasetError, match=r"birds: ../images/0.jpg does not lie below .* read the manifest with root="
    ):
        write_few_shot(tmp_path / "split.json", split)
    assert not (tmp_path / "split.json").exists()


def test_of_the_benchmark(benchmark_tree):
    train = load_benchmark(benchmark_tree.root, "train", check_counts=False)
    split = draw_few_shot(train, 1)
    for name, dataset in train.items():
        part = split.apply(name, dataset)
        assert len(part) == len(dataset.class_names)
        assert part.class_names == dataset.class_names


def test_wrong_shots(folders):
    with pytest.raises(ValueError, match="shots is 0; give 1 or more"):
        draw_few_shot(folders, 0)


def _content(**changes):
    content = {"format": "puma few-shot split", "version": 1, "shots": 2, "seed": 0}
    return content | {"distributions": {"birds": {"c0": ["train/c0/00.jpg"]}}} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ([], "is no few-shot split"),
        (_content(format="other"), "is no few-shot split"),
        (_content(version=2), "has version 2, this package reads version 1; draw it again"),
        (_content(shots=0), "shots is 0, at least 1"),
        (_content(shots=True), "shots is True, not a whole number"),
        (_content(seed="x"), "seed is 'x', not a whole number"),
        (_content(distributions=[]), "has no distributions"),
        (_content(distributions={"birds": {}}), "birds has no classes"),
        (_content(distributions={"birds": {"c0": "x"}}), "class 'c0' of birds is no list of paths"),
        (_content(distributions={"birds": {"c0": [3]}}), "class 'c0' of birds is no list of paths"),
        (_content(distributions={"birds": {"c0": []}}), "class 'c0' of birds has 0 images, 1 to 2 are right"),
        (_content(distributions={"birds": {"c0": ["a", "b", "c"]}}), "class 'c0' of birds has 3 images"),
        (_content(distributions={"birds": {"c0": ["/etc/x.jpg"]}}), "the path '/etc/x.jpg', which is not below"),
        (_content(distributions={"birds": {"c0": ["a/../../x.jpg"]}}), "which is not below"),
        (
            _content(distributions={"birds": {"c0": ["a"], "c1": ["a"]}}),
            "class 'c1' of birds has 'a', which is .* twice",
        ),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError, match=f"a.json.*{message}"):
        read_few_shot(path)


def test_no_file(tmp_path):
    with pytest.raises(DatasetError, match=r"none.json cannot be read .*No such file.*; draw one first"):
        read_few_shot(tmp_path / "none.json")


def test_split_of_other_images(folders):
    birds = folders["birds"]
    classes = {f"c{c}": [f"train/c{c}/00.jpg"] for c in range(3)}

    def apply(changed):
        return FewShotSplit(1, 0, {"birds": changed}).apply("birds", birds)

    assert len(apply(classes)) == 3
    with pytest.raises(
        DatasetError, match=r"birds: the few-shot split lists train/c0/99.jpg, which is not in the dataset"
    ):
        apply(classes | {"c0": ["train/c0/99.jpg"]})
    with pytest.raises(DatasetError, match=r"lists train/c1/00.jpg, which is not of class 'c0' there"):
        apply(classes | {"c0": ["train/c1/00.jpg"]})
    with pytest.raises(DatasetError, match=r"class 'c9' is only in the few-shot split .1 classes differ"):
        apply(classes | {"c9": ["x"]})
    with pytest.raises(DatasetError, match="class 'c2' is only in the few-shot dataset"):
        apply({name: classes[name] for name in ("c0", "c1")})
    with pytest.raises(DatasetError, match=r"dogs: the few-shot split holds no such distribution \(only birds\)"):
        FewShotSplit(1, 0, {"birds": classes}).apply("dogs", birds)
