"""Parsers of annotation files: what they give, and that errors name dataset and file."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from puma_plugin.datasets.annotation_files import check_range, read_columns, read_mat, read_numbered, reading
from puma_plugin.datasets.errors import DatasetError


def test_whatever_goes_wrong_while_parsing_is_told_with_dataset_and_file() -> None:
    message = r"cub: a\.txt, b\.txt cannot be parsed \(KeyError: 3\); the file is damaged"
    with pytest.raises(DatasetError, match=message), reading("cub", "a.txt", "b.txt"):
        raise KeyError(3)
    with (
        pytest.raises(DatasetError, match=r"^cub: nowhere is missing; unpack"),
        reading("cub", "a.txt"),
        open("nowhere"),
    ):
        pass
    # These say enough, or have nothing to do with the file.
    for error in (DatasetError("as it is"), MemoryError("as it is")):
        with pytest.raises(type(error), match=r"^as it is$"), reading("cub", "a.txt"):
            raise error


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("heading\n\n1 a/b.jpg left ear\n 2  c.jpg  right ear \n")
    assert read_columns("cub", str(path), 3, skip=1) == [["1", "a/b.jpg", "left ear"], ["2", "c.jpg", "right ear"]]
    with pytest.raises(DatasetError, match=r"cub: line 1 of .*list\.txt has 1 columns instead of 3: 'heading'"):
        read_columns("cub", str(path), 3)


def numbered(folder: Path, images: str, labels: str) -> tuple[list[str], np.ndarray]:
    (folder / "images.txt").write_text(images)
    (folder / "image_class_labels.txt").write_text(labels)
    return read_numbered("cub", str(folder))


def test_numbered_images_and_labels_in_any_order(tmp_path: Path) -> None:
    keys, classes = numbered(tmp_path, "7 b.jpg\n3 a.jpg\n", "3 1\n7 2\n")
    assert keys == ["images/b.jpg", "images/a.jpg"]
    assert classes.tolist() == [2, 1]
    for images, labels in (("7 b.jpg\n", "7 1\n9 1\n8 1\n"), ("7 b.jpg\n9 c.jpg\n8 d.jpg\n", "7 1\n")):
        with pytest.raises(
            DatasetError, match=r"cub: image 8 is in only one of .*images\.txt and .* \(2 such images\)"
        ):
            numbered(tmp_path, images, labels)


def test_variables_of_a_matlab_file(tmp_path: Path) -> None:
    path = str(tmp_path / "labels.mat")
    savemat(path, {"labels": np.array([[1, 2, 3]]), "other": 4})
    assert read_mat("flowers", path, "labels")["labels"].tolist() == [1, 2, 3]
    with pytest.raises(DatasetError, match=r"holds no variable 'names' \(it holds labels, other\); it is another file"):
        read_mat("flowers", path, "labels", "names")


def test_class_numbers_are_told_as_they_are_published() -> None:
    for none_or_right in ([], [0, 4]):
        check_range("cars", "a.mat", np.array(none_or_right, np.int64), 5)
    for wrong, number in ((5, 6), (-1, 0)):
        with pytest.raises(
            DatasetError, match=rf"cars: a\.mat contains class number {number}, the numbers run from 1 to 5"
        ):
            check_range("cars", "a.mat", np.array([0, wrong, 4]), 5)
