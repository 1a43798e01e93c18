"""Bad images, lone classes, compact storage: what all datasets of files share."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from puma_plugin.datasets.cub import CUB
from puma_plugin.datasets.distribution_dataset import DistributionDataset
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_folder import ImageFolder
from puma_plugin.datasets.listing import Listing, merge_query_gallery
from puma_plugin.datasets.string_table import StringTable
from puma_plugin.datasets.verify import verify_datasets


@pytest.fixture
def damaged(tmp_path, trees):
    """CUB with a missing, a truncated and an empty training image and one that is text. Returns root and keys."""
    truths = trees.cub(tmp_path)
    base = tmp_path / "CUB_200_2011"
    missing, truncated, empty, text = (truths[i].path for i in (2, 5, 9, 40))
    Image.effect_noise((200, 200), 80).convert("RGB").save(base / truncated)
    data = (base / truncated).read_bytes()
    (base / truncated).write_bytes(data[: len(data) // 2])
    (base / missing).unlink()
    (base / empty).write_bytes(b"")
    (base / text).write_text("<html>404</html>")
    return tmp_path, [missing, truncated, empty, text]


def test_unreadable_image_raises_when_read(damaged):
    root, (missing, *unreadable) = damaged
    with pytest.raises(DatasetError, match=f"1 of 200 files are missing, the first is .*{missing}.*bad_images='skip'"):
        CUB(root, "train")
    (root / "CUB_200_2011" / missing).write_bytes(b"")
    dataset = CUB(root, "train")
    for key in unreadable:
        index = list(dataset.item_keys).index(key)
        with pytest.raises(
            DatasetError, match=rf"CUB \(train\): .*{key} cannot be read as an image .*bad_images='skip'"
        ):
            dataset[index]


def test_the_error_survives_a_worker_process(damaged):
    root, (missing, truncated, *_) = damaged
    (root / "CUB_200_2011" / missing).write_bytes(b"")
    dataset = CUB(root, "train")
    part = dataset.subset([list(dataset.item_keys).index(truncated)])
    loader = torch.utils.data.DataLoader(part, batch_size=None, num_workers=1)
    with pytest.raises(DatasetError, match=f"{truncated} cannot be read"):
        next(iter(loader))


def test_image_that_disappears_later(tmp_path, trees):
    truths = trees.cub(tmp_path)
    dataset = CUB(tmp_path, "train")
    (tmp_path / "CUB_200_2011" / truths[0].path).unlink()
    with pytest.raises(DatasetError, match=f"{truths[0].path} does not exist"):
        dataset[0]


def test_skip_leaves_bad_images_out(damaged):
    root, bad = damaged
    with pytest.warns(
        UserWarning, match=rf"CUB \(train\): 4 of 200 images are left out, the first is {bad[0]} \(missing\)"
    ):
        dataset = CUB(root, "train", bad_images="skip")
    assert dataset.num_skipped == 4
    assert [item.key for item in dataset.skipped] == bad
    assert dataset.skipped[0].reason == "missing"
    assert "truncated" in dataset.skipped[1].reason
    assert "UnidentifiedImageError" in dataset.skipped[3].reason
    assert len(dataset) == 196
    assert not set(bad) & set(dataset.item_keys)
    assert len(dataset.class_names) == 100
    for index in range(len(dataset)):
        dataset[index]


def test_skip_without_bad_images_is_silent(damaged, recwarn):
    root, _ = damaged
    dataset = CUB(root, "test", bad_images="skip")
    assert dataset.num_skipped == 0
    assert len(dataset) == 200
    assert not [w for w in recwarn if "left out" in str(w.message)]


def test_skip_with_the_report_of_verify(damaged, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    root, bad = damaged
    report = tmp_path / "report.json"
    report.write_text(json.dumps(verify_datasets(root, open_images=True).to_dict()))
    with pytest.warns(UserWarning, match="4 of 200"):
        by_report = CUB(root, "train", bad_images="skip", known_bad="~/report.json")
    with pytest.warns(UserWarning, match="4 of 200"):
        by_opening = CUB(root, "train", bad_images="skip")
    assert by_report.skipped == by_opening.skipped
    assert list(by_report.paths) == list(by_opening.paths)
    with pytest.warns(UserWarning, match="1 of 200"):
        by_key = CUB(root, "train", bad_images="skip", known_bad={bad[2]})
    assert [item.key for item in by_key.skipped] == [bad[2]]


def test_skip_that_empties_a_class(tmp_path, trees):
    truths = trees.cub(tmp_path)
    for truth in truths[4:6]:
        (tmp_path / "CUB_200_2011" / truth.path).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="2 of 200"),
        pytest.raises(DatasetError, match=r"class '003.Bird_3' has no readable image left .*\(1 such classes\)"),
    ):
        CUB(tmp_path, "train", bad_images="skip")


@pytest.mark.parametrize("content", ["", "[]", '{"datasets": [{"name": "CUB"}]}', None])
def test_known_bad_that_is_no_report(damaged, tmp_path, content):
    root, _ = damaged
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(DatasetError, match=r"CUB \(train\): .*report.json is no report .*--open-images --report"):
        CUB(root, "train", bad_images="skip", known_bad=tmp_path / "report.json")


def test_known_bad_for_which_the_images_were_not_opened(damaged, tmp_path):
    root, _ = damaged
    report = tmp_path / "report.json"
    report.write_text(json.dumps(verify_datasets(root).to_dict()))
    with pytest.raises(DatasetError, match=r"CUB \(train\): .* not opened .*report.json \(only .* no dataset\)"):
        CUB(root, "train", bad_images="skip", known_bad=report)
    report.write_text(json.dumps(verify_datasets(root, open_images=True).to_dict()))
    folders = root / "CUB_200_2011" / "images"
    with pytest.raises(DatasetError, match=r"images of birds were not opened .* \(only those of CUB\)"):
        ImageFolder(folders, "train", bad_images="skip", known_bad=report, name="birds")


def test_wrong_arguments(damaged):
    root, _ = damaged
    with pytest.raises(ValueError, match="bad_images is 'ignore'; give 'raise' or 'skip'"):
        CUB(root, "train", bad_images="ignore")
    with pytest.raises(ValueError, match="known_bad is given with bad_images='raise'"):
        CUB(root, "train", known_bad=["x"])


def test_lone_class_and_empty_distribution(tmp_path, trees):
    for key, number in (("a/1.jpg", 0), ("a/2.jpg", 0), ("b/1.jpg", 1)):
        trees.write_jpeg(tmp_path / key, number)
    listing = Listing.build(str(tmp_path), ["a/1.jpg", "a/2.jpg", "b/1.jpg"], [0, 0, 1], ["a", "b"])
    with pytest.raises(
        DatasetError, match=r"mine \(train\): class 'b' has 1 image \(.*b/1.jpg\), 2 are needed \(1 such"
    ):
        DistributionDataset(listing, "mine", min_images=2)
    assert len(DistributionDataset(listing, "mine")) == 3
    empty = Listing.build(str(tmp_path), [], [], [])
    with pytest.raises(DatasetError, match=rf"mine \(test\): no image is listed below {tmp_path}"):
        DistributionDataset(empty, "mine", "test")


def test_small_classes_are_left_out_counted_and_listed(tmp_path, trees):
    keys, numbers = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "c/2.jpg"], [0, 1, 1, 2, 2]
    for key, number in zip(keys, numbers, strict=True):
        trees.write_jpeg(tmp_path / key, number)
    listing = Listing.build(str(tmp_path), keys, numbers, ["a", "b", "c"])
    warning = r"mine \(train\): 1 of 3 classes have fewer than 2 images and are left out \(1 image\), the first is 'a'"
    with pytest.warns(UserWarning, match=warning):
        dataset = DistributionDataset(listing, "mine", min_images=2, small_classes="skip")
    assert dataset.class_names == ["b", "c"]
    assert dataset.targets.tolist() == [0, 0, 1, 1]
    assert [(item.key, item.reason) for item in dataset.skipped] == [("a/1.jpg", "class 'a' has 1 image, 2 are needed")]

    # Small because of unreadable images, or nothing left of it.
    (tmp_path / "b/2.jpg").write_bytes(b"")
    (tmp_path / "a/1.jpg").write_bytes(b"")
    bad = pytest.warns(UserWarning, match="2 of 5 images")
    with bad, pytest.raises(DatasetError, match=r"class 'a' has no readable image left .*small_classes='skip'"):
        DistributionDataset(listing, "mine", bad_images="skip")
    with bad, pytest.warns(UserWarning, match="1 of 2 classes"):
        dataset = DistributionDataset(listing, "mine", bad_images="skip", min_images=2, small_classes="skip")
    assert list(dataset.item_keys) == ["c/1.jpg", "c/2.jpg"]
    assert [item.key for item in dataset.skipped] == ["a/1.jpg", "b/2.jpg", "b/1.jpg"]
    every = pytest.warns(UserWarning, match="3 of 3 classes")
    with every, pytest.raises(DatasetError, match=r"none of the 3 classes below .* has 3 images"):
        DistributionDataset(listing, "mine", min_images=3, small_classes="skip")
    with pytest.raises(ValueError, match="small_classes is 'drop'; give 'raise' or 'skip'"):
        DistributionDataset(listing, "mine", small_classes="drop")


def test_listing_numbers_classes():
    listing = Listing.build("/b", ["x", "y", "z", "w"], [7, 3, 7, 12], {7: "seven", 3: "n", 12: "n"})
    assert listing.targets.tolist() == [1, 0, 1, 2]
    assert listing.class_names == ["n (3)", "seven", "n (12)"]
    part = listing.take(np.array([3, 0]))
    assert (part.targets.tolist(), part.class_names, list(part.keys)) == ([1, 0], ["seven", "n (12)"], ["w", "x"])
    assert listing.counts().tolist() == [1, 2, 1]


def test_query_and_gallery_merge_by_name():
    query = Listing.build("/b", ["q1", "q2"], [0, 1], ["x", "y"])
    gallery = Listing.build("/b", ["g1", "g2"], [0, 1], ["y", "z"])
    both = merge_query_gallery(query, gallery)
    assert both.class_names == ["x", "y", "z"]
    assert both.targets.tolist() == [0, 1, 1, 2]
    assert both.is_query.tolist() == [True, True, False, False]
    assert both.take(np.array([2, 0])).is_gallery.tolist() == [True, False]


def test_string_table():
    strings = ["", "a/b.jpg", "grün/日本.png", "\udcff\udc80.jpg", "a/b.jpg"]
    table = StringTable(strings, prefix="p/")
    assert list(table) == ["p/" + s for s in strings]
    assert [table[i] for i in range(-5, 5)] == ["p/" + s for s in strings] * 2
    assert list(table[1:3]) == ["p/a/b.jpg", "p/grün/日本.png"]
    assert list(table.take(np.array([4, 0, 2]))) == ["p/a/b.jpg", "p/", "p/grün/日本.png"]
    assert list(table.with_prefix("")) == strings
    assert "p/a/b.jpg" in table
    assert list(pickle.loads(pickle.dumps(table))) == list(table)
    assert list(StringTable()) == []
    for index in (5, -6):
        with pytest.raises(IndexError, match="out of range for 5 strings"):
            table[index]
    assert StringTable(["x" * 50] * 1000).nbytes == 50 * 1000 + 8 * 1001
