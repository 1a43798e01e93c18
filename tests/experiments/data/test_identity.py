"""Files that changed give another digest; files that did not give the same."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from puma_plugin.experiments.data.identity import data_digest, file_digest
from puma_plugin.experiments.data.splits import load_splits
from puma_plugin.experiments.settings.config import DataConfig


def set_time(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


@pytest.fixture
def data(tmp_path: Path, write_classes: Callable[..., None]) -> Path:
    for name in ("a", "b"):
        write_classes(tmp_path / "data" / name, {"first": 2, "second": 2})
    for path in (tmp_path / "data").rglob("*.png"):
        set_time(path, 1_000_000)
    return tmp_path / "data"


def test_image_folders(data: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(data))
    before = data_digest(config)
    assert data_digest(config) == before
    # Moved as a whole, times and all.
    data.rename(tmp_path / "moved")
    assert data_digest(DataConfig(root=str(tmp_path / "moved"))) == before
    (tmp_path / "moved").rename(data)
    image = data / "a" / "first" / "00.png"
    set_time(image, 2_000_000)
    assert data_digest(config) != before
    set_time(image, 1_000_000)
    assert data_digest(config) == before
    image.write_bytes(image.read_bytes() + b" ")
    set_time(image, 1_000_000)
    assert data_digest(config) != before
    # Of the other distribution alone nothing has changed.
    other = DataConfig(root=str(data), names=["b"])
    unchanged = data_digest(other)
    (data / "a" / "first" / "00.png").unlink()
    assert data_digest(other) == unchanged
    (data / "b" / "first" / "00.png").rename(data / "b" / "first" / "09.png")
    assert data_digest(other) != unchanged


def test_manifest_and_its_images(data: Path) -> None:
    table = data / "list.csv"
    rows = [f"{path.relative_to(data)},{path.parent.name}" for path in sorted(data.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *rows]))
    config = DataConfig(kind="manifest", manifest=str(table))
    before = data_digest(config)
    (data / "a" / "first" / "01.png").unlink()
    without = data_digest(config)
    assert without != before
    table.write_text("\n".join(["path,label", *rows[:-1]]))
    assert data_digest(config) not in (before, without)


def test_benchmark_counts_its_annotations_too(layouts, tmp_path: Path) -> None:
    layouts.make_cub(tmp_path)
    config = DataConfig(kind="benchmark", root=str(tmp_path), names=["CUB"])
    before = data_digest(config)
    (tmp_path / "unrelated.jpg").write_bytes(b"")
    assert data_digest(config) == before
    set_time(tmp_path / "CUB_200_2011" / "images.txt", 1_000_000)
    assert data_digest(config) != before


def test_what_is_not_there_is_said_by_loading_for_all_distributions_together(
    data: Path, tmp_path: Path, layouts
) -> None:
    config = DataConfig(folders={"a": str(data / "a"), "lost": str(data / "lost")})
    assert data_digest(config) != data_digest(DataConfig(folders={"a": str(data / "a")}))
    with pytest.raises(ValueError, match="lost"):
        load_splits(config)
    layouts.make_cub(tmp_path)
    benchmark = DataConfig(kind="benchmark", root=str(tmp_path))
    assert data_digest(benchmark) != data_digest(replace(benchmark, names=["CUB"]))
    with pytest.raises(
        ValueError, match=r"(?s)Cars196: not found.*StanfordOnlineProducts: not found.*InShop: not found"
    ):
        load_splits(benchmark)


def test_small_files_count_by_their_content(data: Path, tmp_path: Path) -> None:
    split = tmp_path / "shots.json"
    split.write_text("{}")
    config = DataConfig(root=str(data), few_shot=str(split))
    before = data_digest(config)
    set_time(split, 1_000_000)
    assert data_digest(config) == before
    split.write_text("{ }")
    assert data_digest(config) != before
    assert file_digest(tmp_path / "nothing") is None
    assert data_digest(DataConfig(kind="embedded")) is None
