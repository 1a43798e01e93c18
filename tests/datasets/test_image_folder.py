"""Folders of class folders: splits, queries and galleries, errors, scale."""

import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision
from PIL import Image

from puma_plugin.datasets import image_scan
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_folder import ImageFolder, list_image_folder, list_whole_folder
from puma_plugin.datasets.image_scan import subfolders
from puma_plugin.datasets.unified_dataset import UnifiedDataset


def _make(trees, root, classes, per_class=2, prefix=""):
    for number, name in enumerate(classes):
        for i in range(per_class):
            trees.write_jpeg(root / prefix / name / f"{i}.jpg", number)


def test_split_by_class(tmp_path, trees):
    _make(trees, tmp_path, ["d", "a", "c", "b", "e"])
    trees.write_jpeg(tmp_path / "a" / "more" / "x.jpeg", 1)
    train, test = ImageFolder(tmp_path, "train"), ImageFolder(tmp_path, "test")
    assert train.class_names == ["a", "b"]
    assert test.class_names == ["c", "d", "e"]
    assert list(train.item_keys) == ["a/0.jpg", "a/1.jpg", "a/more/x.jpeg", "b/0.jpg", "b/1.jpg"]
    assert train.targets.tolist() == [0, 0, 0, 1, 1]
    assert train.name == tmp_path.name
    assert train[0][0].mode == "RGB"
    assert ImageFolder(tmp_path, "test", test_fraction=0.2).class_names == ["e"]
    assert ImageFolder(tmp_path, "train", test_fraction=0.99).class_names == ["a"]
    assert list(ImageFolder(tmp_path, "query").item_keys) == list(test.item_keys)


def test_the_whole_tree_equals_torchvision(tmp_path, trees):
    _make(trees, tmp_path, ["x 1", "Y", "z"], 3)
    listing, theirs = list_image_folder(tmp_path, "mine"), torchvision.datasets.ImageFolder(tmp_path)
    assert list(listing.keys.with_prefix(listing.base + os.sep)) == [path for path, _ in theirs.samples]
    assert listing.targets.tolist() == theirs.targets
    assert listing.class_names == theirs.classes


def test_train_and_test_folders(tmp_path, trees):
    _make(trees, tmp_path, ["a", "b"], prefix="train")
    _make(trees, tmp_path, ["b", "c", "d"], prefix="test")
    assert ImageFolder(tmp_path, "train").class_names == ["a", "b"]
    test = ImageFolder(tmp_path, "test", name="mine")
    assert list(test.item_keys)[:2] == ["test/b/0.jpg", "test/b/1.jpg"]
    assert test.query_mask is None
    assert ImageFolder(tmp_path, "gallery").class_names == ["b", "c", "d"]
    assert test.label == "mine (test)"


def test_query_and_gallery_folders(tmp_path, trees):
    _make(trees, tmp_path, ["a", "b"], prefix="train")
    _make(trees, tmp_path, ["c", "d"], 1, prefix="query")
    _make(trees, tmp_path, ["c", "d", "distractor"], 2, prefix="gallery")
    test = ImageFolder(tmp_path, "test")
    assert test.class_names == ["c", "d", "distractor"]
    assert test.query_mask.tolist() == [True] * 2 + [False] * 6
    assert test.gallery_mask.tolist() == [False] * 2 + [True] * 6
    assert test.targets.tolist() == [0, 1, 0, 0, 1, 1, 2, 2]
    assert len(ImageFolder(tmp_path, "query")) == 2
    assert len(ImageFolder(tmp_path, "gallery")) == 6
    joined = UnifiedDataset({"mine": test})
    assert joined.query_mask.sum() == 2


def test_distractors_may_be_alone(tmp_path, trees):
    """Only classes that are searched for need a partner."""
    _make(trees, tmp_path, ["a", "b"], prefix="train")
    _make(trees, tmp_path, ["c"], 1, prefix="query")
    _make(trees, tmp_path, ["c", "x", "y"], 1, prefix="gallery")
    assert len(ImageFolder(tmp_path, "test")) == 4
    with pytest.raises(DatasetError, match=r"class 'c' has 2 images \(.*query/c/0.jpg\), 3 are needed \(1 such"):
        ImageFolder(tmp_path, "test", min_images=3)


def test_small_classes_have_no_say_in_the_split(tmp_path, trees):
    """The training classes are those of the folder without the small ones: no class trains here and tests there."""
    _make(trees, tmp_path, "abcd", 2)
    parts = {split: ImageFolder(tmp_path, split).class_names for split in ("train", "test")}
    _make(trees, tmp_path, ["0", "1", "2"], 1)
    for split, names in parts.items():
        with pytest.warns(UserWarning, match="3 of 7 classes have fewer than 2 images"):
            dataset = ImageFolder(tmp_path, split, small_classes="skip")
        assert dataset.class_names == names
        assert dataset.num_skipped == 3
    assert parts == {"train": ["a", "b"], "test": ["c", "d"]}


def test_small_query_classes_are_left_out_with_their_gallery(tmp_path, trees):
    _make(trees, tmp_path, ["c", "d"], 1, prefix="query")
    _make(trees, tmp_path, ["c", "x"], 1, prefix="gallery")
    _make(trees, tmp_path, ["d"], 2, prefix="gallery")
    with pytest.warns(UserWarning, match="1 of 3 classes"):
        test = ImageFolder(tmp_path, "test", min_images=3, small_classes="skip")
    assert list(test.item_keys) == ["query/d/0.jpg", "gallery/d/0.jpg", "gallery/d/1.jpg", "gallery/x/0.jpg"]
    assert len(ImageFolder(tmp_path, "query", min_images=3, small_classes="skip")) == 2


def test_query_class_without_gallery(tmp_path, trees):
    _make(trees, tmp_path, ["c", "lost"], prefix="query")
    _make(trees, tmp_path, ["c"], prefix="gallery")
    with pytest.raises(DatasetError, match=r"\(test\): query class 'lost' is not in .*gallery .*1 such classes"):
        ImageFolder(tmp_path, "test")


def test_errors_name_distribution_and_folder(tmp_path, trees):
    with pytest.raises(DatasetError, match=r"mine \(train\): .*nowhere is no folder"):
        ImageFolder(tmp_path / "nowhere", name="mine")
    with pytest.raises(DatasetError, match=rf"mine \(train\): {tmp_path} holds no subfolders"):
        ImageFolder(tmp_path, name="mine")
    _make(trees, tmp_path, ["a"])
    with pytest.raises(DatasetError, match=r"needs 2 classes, .* there are 1 in .* \(a\)"):
        ImageFolder(tmp_path, name="mine")
    (tmp_path / "b").mkdir()
    with pytest.raises(DatasetError, match=r"mine \(train\): class folder .*/b holds no image \(.bmp, .gif"):
        ImageFolder(tmp_path, name="mine")
    trees.write_jpeg(tmp_path / "b" / "only.jpg", 1)
    with pytest.raises(
        DatasetError, match=r"mine \(test\): class 'b' has 1 image \(.*b/only.jpg\), 2 are needed .*min_images=1"
    ):
        ImageFolder(tmp_path, "test", name="mine")
    assert len(ImageFolder(tmp_path, "test", min_images=1)) == 1
    with pytest.raises(ValueError, match=r"test_fraction is 1.0; it must be in \(0, 1\)"):
        ImageFolder(tmp_path, test_fraction=1.0)
    _make(trees, tmp_path / "half", ["a", "b"], prefix="train")
    with pytest.raises(DatasetError, match="holds train but nothing to make 'test' of; add a folder called test"):
        ImageFolder(tmp_path / "half", "test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_beside_the_split_folders_are_refused(tmp_path, trees, split):
    """They would be left out without a word; a manifest refuses the split val too."""
    for part, classes in (("train", "ab"), ("test", "cd"), ("val", "e")):
        _make(trees, tmp_path, classes, prefix=part)
    message = (
        rf"mine \({split}\): {tmp_path} has the folder 'val' beside train, test, .* give one of train, test, query, "
    )
    with pytest.raises(
        DatasetError, match=message + f"gallery: merge it into one of these, or move it out of {tmp_path}"
    ):
        ImageFolder(tmp_path, split, name="mine")
    _make(trees, tmp_path, ["e"], prefix="dev")
    with pytest.raises(DatasetError, match="has the folders 'dev', 'val' beside train, test"):
        ImageFolder(tmp_path, split)


def test_what_is_no_image_may_lie_beside_the_split_folders(tmp_path, trees):
    _make(trees, tmp_path, ["a", "b"], prefix="train")
    _make(trees, tmp_path, ["a", "b"], prefix=".thumbnails")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    assert ImageFolder(tmp_path, "train").class_names == ["a", "b"]


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".gif", ".GIF"])
def test_less_common_endings_are_images_too(tmp_path, trees, ending):
    """Of a GIF with two pictures the first is read; with a palette or not, items are RGB."""
    _make(trees, tmp_path, ["a", "b"])
    red, blue = (Image.new("RGB", (12, 10), colour) for colour in ("red", "blue"))
    red.save(
        tmp_path / "a" / f"x{ending}", **({"save_all": True, "append_images": [blue]} if "g" in ending.lower() else {})
    )
    train = ImageFolder(tmp_path, "train", bad_images="skip")
    assert list(train.item_keys) == ["a/0.jpg", "a/1.jpg", f"a/x{ending}"]
    image = train[2][0]
    assert image.mode == "RGB"
    assert np.abs(np.subtract(image.getpixel((5, 5)), (255, 0, 0))).max() < 5


def test_unreadable_image(tmp_path, trees):
    _make(trees, tmp_path, ["a", "b"], 3)
    (tmp_path / "a" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"a/1.jpg cannot be read"):
        ImageFolder(tmp_path, "train")[1]
    with pytest.warns(UserWarning, match="1 of 3"):
        assert len(ImageFolder(tmp_path, "train", bad_images="skip")) == 2


def test_splits_in_another_spelling_are_no_classes(tmp_path, trees):
    for name in ("Train", "Val"):
        _make(trees, tmp_path, ["a", "b"], prefix=name)
    for read in (lambda: ImageFolder(tmp_path), lambda: list_whole_folder(tmp_path, "mine")):
        with pytest.raises(DatasetError, match=r"holds 'Train', 'Val', which look like splits .* call them train"):
            read()
    # Among others Train may be a class, such as one of vehicles.
    _make(trees, tmp_path, ["c"], prefix="Ship")
    assert ImageFolder(tmp_path, "test").class_names == ["Train", "Val"]


def test_what_is_no_file_is_no_image(tmp_path, trees):
    _make(trees, tmp_path, ["a", "b"])
    expected = list(ImageFolder(tmp_path).paths)
    os.mkfifo(tmp_path / "a" / "pipe.jpg")  # opening it would wait for a writer
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "loop").symlink_to("loop")
    assert list(ImageFolder(tmp_path).paths) == expected
    (tmp_path / "a" / "lost.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DatasetError, match=r"lost\.jpg"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("place", ["train", "test", "train/c", "train/a/more", "val"])
def test_a_link_to_a_folder_that_does_not_exist_is_an_error(tmp_path, trees, place):
    """Such as one on a disk that is not mounted: without a word, what is there would be taken for everything."""
    for part in ("train", "test"):
        _make(trees, tmp_path / "own", ["a", "b"], prefix=part)
    if place in ("train", "test"):
        (tmp_path / "own" / place).rename(tmp_path / "elsewhere")
    (tmp_path / "own" / place).symlink_to(tmp_path / "unmounted")
    told = f"{tmp_path}/own/{place} is a link to {tmp_path}/unmounted, which does not exist; mount its disk"
    with pytest.raises(DatasetError, match=told):
        ImageFolder(tmp_path / "own", "test" if place == "test" else "train")
    with pytest.raises(DatasetError, match=told):
        list_whole_folder(tmp_path / "own", "mine")


def test_a_distribution_that_is_a_link_to_nothing(tmp_path):
    (tmp_path / "own").symlink_to(tmp_path / "unmounted")
    with pytest.raises(
        DatasetError, match=rf"^mine \(train\): {tmp_path}/own is a link to {tmp_path}/unmounted, which"
    ):
        ImageFolder(tmp_path / "own", name="mine")


def test_what_systems_leave_beside_pictures_is_no_class(tmp_path, trees):
    _make(trees, tmp_path, ["a", "b"])
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "a" / "._0.jpg").touch()
    _make(trees, tmp_path, ["a/0.jpg"], prefix="@eaDir")
    parts = [ImageFolder(tmp_path, split).class_names for split in ("train", "test")]
    assert parts == [["a"], ["b"]]
    # Beside folders of splits such folders are no others whose images would not be used.
    for part in ("train", "test"):
        _make(trees, tmp_path, ["a", "b"], prefix=part)
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)
    assert ImageFolder(tmp_path, "train").class_names == ["a", "b"]


def test_a_link_that_cannot_be_followed_for_another_reason_is_an_error(tmp_path, trees, monkeypatch):
    """Without a word there would be a class less."""
    _make(trees, tmp_path, ["a", "b", "c"])
    (tmp_path / "d").symlink_to("c")

    def stale(self):
        raise OSError(errno.ESTALE, "Stale file handle")

    (link,) = (entry for entry in os.scandir(tmp_path) if entry.name == "d")
    monkeypatch.setattr(image_scan, "_entries", lambda folder: [SimpleNamespace(name="d", is_dir=lambda: stale(link))])
    with pytest.raises(OSError, match="Stale file handle"):
        subfolders(tmp_path)
