"""Finding image files: order, links, what is passed over, what is missing."""

from itertools import islice

import pytest

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_folder import ImageFolder
from puma_plugin.datasets.image_scan import (
    files_directly_in,
    find_missing,
    is_image_name,
    left_aside,
    scan_images,
    subfolders,
)


def test_scanning_order_hidden_files_and_links(tmp_path):
    for key in (
        "b/2.JPG",
        "b/1.png",
        "a/deep/er/x.webp",
        ".git/x.jpg",
        "b/._1.png",
        "b/notes.txt",
        "z.jpeg",
        "B/q.tif",
    ):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = list(scan_images(str(tmp_path), "pre/"))
    expected = ["B/q.tif", "a/deep/er/x.webp", "b/1.png", "b/2.JPG", "c/1.png", "c/2.JPG", "z.jpeg"]
    assert found == ["pre/" + key for key in expected]
    assert not is_image_name("jpg")


def test_links_that_lead_back_are_not_followed_by_whatever_way(tmp_path, trees):
    """One to the folder itself, and one over another folder, whose name begins the same and which links back twice."""
    here, there = tmp_path / "birds2", tmp_path / "birds"
    for folder in (here, there):
        trees.write_jpeg(folder / "1.jpg", 1)
    (there / "deep").mkdir()
    for link, target in ((here / "self", here), (here / "z", there), (there / "back", here), (there / "deep/er", here)):
        link.symlink_to(target)
    assert list(islice(scan_images(str(here)), 9)) == ["1.jpg", "z/1.jpg"]  # of what would be without end


def test_what_systems_leave_beside_pictures_is_passed_over(tmp_path, trees):
    """Of macOS in a zip file, and Synology's thumbnails."""
    trees.write_jpeg(tmp_path / "a" / "1.jpg", 1)
    for folder in ("__MACOSX/a", "a/__MACOSX", "@eaDir/a", "a/@eaDir/1.jpg"):
        trees.write_jpeg(tmp_path / folder / "thumb.jpg", 1)
        (tmp_path / folder / "notes").touch()
    assert subfolders(str(tmp_path)) == ["a"]
    assert list(scan_images(str(tmp_path))) == ["a/1.jpg"]
    assert left_aside(str(tmp_path), {"a/1.jpg"}) == {}


def test_links_to_folders_that_do_not_exist(tmp_path, trees):
    """Listed, so that whoever reads them is told; what is like a file and what is hidden is not."""
    trees.write_jpeg(tmp_path / "a" / "1.jpg", 1)
    gone = tmp_path / "unmounted"
    files = ("notes.txt", "1.JPG", "README", "clip.mov", "Thumbs.db", "cover.webp.part", "LICENSE", ".cache", "@eaDir")
    for name in ("b", "003.Auk", "Mr.Bean", "Mus.m", "a/.cache", "a/notes", *files):
        (tmp_path / name).symlink_to(gone)
    (tmp_path / "not fetched").symlink_to(".git/annex/objects/4f/0x/SHA256E-s9--ab/SHA256E-s9--ab")
    told = rf"^{tmp_path}/%s is a link to {gone}, which does not exist; mount its disk, or mend or remove the link$"
    assert subfolders(str(tmp_path)) == ["003.Auk", "Mr.Bean", "Mus.m", "a", "b"]
    for read in (subfolders, lambda folder: list(scan_images(folder))):
        with pytest.raises(DatasetError, match=told % "b"):
            read(str(tmp_path / "b"))
    assert list(scan_images(str(tmp_path / "a"))) == ["1.jpg"]
    with pytest.raises(DatasetError, match=told % "a/notes"):
        list(scan_images(str(tmp_path / "a"), strict=True))
    (tmp_path / "c" / "deep").mkdir(parents=True)
    (tmp_path / "c" / "deep" / "er").symlink_to(gone)
    with pytest.raises(DatasetError, match=told % "c/deep/er"):
        list(scan_images(str(tmp_path / "c"), strict=True))
    gone.mkdir()
    assert list(scan_images(str(tmp_path / "a"), strict=True)) == ["1.jpg"]


def test_links_to_files_are_told_apart(tmp_path, trees):
    trees.write_jpeg(tmp_path / "a" / "deep" / "1.jpg", 1)
    for link in ("a/2.jpg", "a/deep/3.jpg"):
        (tmp_path / link).symlink_to(tmp_path / "a" / "deep" / "1.jpg")
    links: list[str] = []
    assert list(scan_images(str(tmp_path), "pre/", links=links)) == [
        "pre/a/2.jpg", "pre/a/deep/1.jpg", "pre/a/deep/3.jpg",
    ]  # fmt: skip
    assert links == ["pre/a/2.jpg", "pre/a/deep/3.jpg"]


def test_files_that_are_not_used_by_ending(tmp_path):
    for name in ("a/1.jpg", "a/2.JPG", "a/3.png", "a/b.TXT", "c.txt", "d.csv", "e.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert list(left_aside(str(tmp_path), None).items()) == [(".txt", 3), (".csv", 1)]
    assert list(left_aside(str(tmp_path), {"a/3.png"}).items()) == [(".txt", 3), (".jpg", 2), (".csv", 1)]
    assert left_aside(str(tmp_path), set()) == {".txt": 3, ".jpg": 2, ".csv": 1, ".png": 1}
    assert files_directly_in(str(tmp_path)) == []
    assert files_directly_in(str(tmp_path / "a")) == ["1.jpg", "2.JPG", "3.png"]


def test_links_to_nothing_are_missing(tmp_path, trees):
    for name in ("a", "b"):
        trees.write_jpeg(tmp_path / "elsewhere" / f"{name}.jpg", 1)
        for index in range(2):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / name / f"{index}.jpg").symlink_to(tmp_path / "elsewhere" / f"{name}.jpg")
    assert len(ImageFolder(tmp_path / "own", test_fraction=0.5)) == 2
    (tmp_path / "elsewhere" / "a.jpg").unlink()
    assert find_missing(str(tmp_path / "own"), ["a/0.jpg", "b/0.jpg"]) == [0]
    with pytest.raises(DatasetError, match=r"2 of 2 files are missing, the first is .*own/a/0.jpg"):
        ImageFolder(tmp_path / "own")


def test_missing(tmp_path, trees):
    keys = ["a/1.jpg", "a/2.jpg", "gone/3.jpg", "4.jpg", "a/1.jpg/5.jpg"]
    trees.write_jpeg(tmp_path / "a/1.jpg", 1)
    trees.write_jpeg(tmp_path / "4.jpg", 1)
    assert find_missing(str(tmp_path), keys) == [1, 2, 4]
