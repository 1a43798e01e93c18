"""Finding image files, and reading them as RGB whatever they hold."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_files import as_rgb, find_defects, find_missing, is_image_name, read_image, scan_images


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


def test_missing_and_defects(tmp_path, trees):
    keys = ["a/1.jpg", "a/2.jpg", "gone/3.jpg", "4.jpg", "a/1.jpg/5.jpg"]
    trees.write_jpeg(tmp_path / "a/1.jpg", 1)
    trees.write_jpeg(tmp_path / "4.jpg", 1)
    assert find_missing(str(tmp_path), keys) == [1, 2, 4]
    (tmp_path / "4.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    done = []
    paths = [str(tmp_path / key) for key in ("a/1.jpg", "4.jpg", "5.png", "none.jpg")]
    defects = find_defects(paths, workers=2, progress=done.append)
    assert sorted(defects) == [1, 2, 3]
    assert done == [4]
    assert re.match("FileNotFoundError", defects[3])


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_of_16_bits_the_upper_8_are_read(ending: str, tmp_path: Path) -> None:
    """Pillow alone would make everything above 255 white."""
    grey = np.array([[0, 255, 256, 1000], [30_000, 40_000, 65_000, 65_535]], dtype=np.uint16)
    path = tmp_path / f"grey.{ending}"
    Image.fromarray(grey).save(path)
    assert find_defects([str(path)]) == {}
    assert np.array_equal(read_image(str(path), "scans"), np.repeat((grey // 256)[..., None], 3, axis=2))


def test_big_endian_pixels() -> None:
    values = np.array([[0, 256, 65_535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_an_unknown_range_are_refused(mode: str, tmp_path: Path) -> None:
    path = str(tmp_path / "height.tif")
    Image.fromarray(np.full((4, 4), 300, dtype=np.int32 if mode == "I" else np.float32)).save(path)
    message = f"its pixels are of 32 bits \\(mode {mode}\\), so it is not known which value is white; save it with 8 or"
    assert re.match(f"ValueError: {message}", find_defects([path])[0])
    with pytest.raises(DatasetError, match=rf"scans: .*height\.tif cannot be read as an image \({message}"):
        read_image(path, "scans")


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGBA", (7, 7, 7, 0)), ("P", 7), ("1", 1), ("LA", (7, 9))])
def test_other_modes_as_pillow_converts_them(mode: str, colour: object) -> None:
    image = Image.new(mode, (3, 2), colour)
    assert np.array_equal(as_rgb(image), image.convert("RGB"))
