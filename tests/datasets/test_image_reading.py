"""Reading image files as RGB whatever they hold."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_reading import as_rgb, find_defects, read_image


def test_defects(tmp_path, trees):
    trees.write_jpeg(tmp_path / "1.jpg", 1)
    (tmp_path / "4.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    done = []
    paths = [str(tmp_path / key) for key in ("1.jpg", "4.jpg", "5.png", "none.jpg")]
    defects = find_defects(paths, workers=2, progress=done.append)
    assert sorted(defects) == [1, 2, 3]
    assert done == [4]
    assert re.match("FileNotFoundError", defects[3])


def test_defects_are_found_in_every_portion_and_behind_the_header(tmp_path):
    """One thread takes 64 images at a time."""
    Image.effect_noise((64, 64), 90).save(tmp_path / "1.jpg")
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    paths = 70 * [str(tmp_path / "1.jpg")]
    paths[3] = paths[66] = str(tmp_path / "cut.jpg")
    done = []
    assert sorted(find_defects(paths, workers=1, progress=done.append)) == [3, 66]
    assert done == [64, 70]


def test_a_picture_that_is_too_large_to_be_one_is_refused_with_its_name(tmp_path, trees, monkeypatch):
    """Pillow takes it for an attack by decompression."""
    trees.write_jpeg(tmp_path / "1.jpg", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert find_defects([str(tmp_path / "1.jpg")])[0].startswith("DecompressionBombError")
    with pytest.raises(DatasetError, match=r"scans: .*1\.jpg cannot be read as an image"):
        read_image(str(tmp_path / "1.jpg"), "scans")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_of_16_bits_the_upper_8_are_read(ending: str, tmp_path: Path) -> None:
    """Pillow alone would make everything above 255 white."""
    grey = np.array([[0, 255, 256, 1000], [30_000, 40_000, 65_000, 65_535]], dtype=np.uint16)
    path = tmp_path / f"grey.{ending}"
    Image.fromarray(grey).save(path)
    assert find_defects([str(path)]) == {}
    assert np.array_equal(read_image(str(path), "scans"), np.repeat((grey // 256)[..., None], 3, axis=2))


def test_grey_maps_of_16_bits(tmp_path: Path) -> None:
    """Pillow opens them with 32 bits, as earlier versions did PNGs."""
    path = tmp_path / "grey.ppm"
    path.write_bytes(b"P5 3 1 65535\n" + np.array([0, 256, 65_535], dtype=">u2").tobytes())
    assert find_defects([str(path)]) == {}
    assert np.asarray(read_image(str(path), "scans"))[0, :, 0].tolist() == [0, 1, 255]
    png = Image.fromarray(np.array([[0, 256, 65_535]], dtype=np.int32))
    png.format = "PNG"
    assert np.asarray(as_rgb(png))[0, :, 0].tolist() == [0, 1, 255]


def test_12_bits_of_a_scanner(tmp_path: Path) -> None:
    """A TIFF by hand: Pillow reads, but does not write, values of 12 bits."""
    values = bytes([0x00, 0x00, 0x10, 0xFF, 0xFF, 0xFF])  # 0, 16, 4095, 4095
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 0), (277, 1), (278, 1), (279, len(values))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    path = tmp_path / "scan.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values)
    assert np.asarray(read_image(str(path), "scans"))[0, :, 0].tolist() == [0, 1, 255, 255]


def test_big_endian_pixels() -> None:
    values = np.array([[0, 256, 65_535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_32_bits_whose_values_fit_8(kind: type) -> None:
    values = np.array([[0, 7, 255]])
    assert np.asarray(as_rgb(Image.fromarray(values.astype(kind))))[0, :, 1].tolist() == [0, 7, 255]


@pytest.mark.parametrize(("kind", "mode", "values"), [
    (np.int32, "I", "0 to 300"), (np.float32, "F", r"0\.0 to 300\.0"),
])  # fmt: skip
def test_other_pixels_of_an_unknown_range_are_refused(kind: type, mode: str, values: str, tmp_path: Path) -> None:
    path = str(tmp_path / "height.tif")
    Image.fromarray(np.array([[0, 300]], dtype=kind)).save(path)
    message = (
        rf"its values \(Pillow's mode {mode}\) go from {values}, so it is not known which is white; save it with 8 or"
    )
    assert re.match(f"ValueError: {message}", find_defects([path])[0])
    with pytest.raises(DatasetError, match=rf"scans: .*height\.tif cannot be read as an image \({message}"):
        read_image(path, "scans")


@pytest.mark.parametrize("values", [[0, 256], [-1, 7]])
def test_one_more_or_less_than_8_bits(values: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"go from {values[0]} to {values[1]}, so it is not known which is white"):
        as_rgb(Image.fromarray(np.array([values], dtype=np.int32)))


@pytest.mark.parametrize("values", [[0.0, 0.5, 1.0], [0.0, 1.0], [0.0, 7.5]])
def test_fractions_are_not_taken_for_8_bits(values: list[float]) -> None:
    with pytest.raises(ValueError, match="not known which is white"):
        as_rgb(Image.fromarray(np.array([values], dtype=np.float32)))


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGBA", (7, 7, 7, 0)), ("P", 7), ("1", 1), ("LA", (7, 9))])
def test_other_modes_as_pillow_converts_them(mode: str, colour: object) -> None:
    image = Image.new(mode, (3, 2), colour)
    assert np.array_equal(as_rgb(image), image.convert("RGB"))
