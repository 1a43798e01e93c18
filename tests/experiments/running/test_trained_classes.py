"""A run that is to go on is compared with the classes it began with."""

import json
from pathlib import Path

import pytest

from puma_plugin.experiments.running.trained_classes import classes_of, require_unchanged

BEGAN_WITH = {"cats": {"a": 2, "b": 3}, "dogs": {"c": 4}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "classes.json").write_text(json.dumps(BEGAN_WITH))
    return tmp_path


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"cats": {"a": 2, "b": 5}}, r"cats: .* class 'b' had 3 and has 5 \(1 class differs\)"),
        ({"cats": {"a": 2}}, r"cats: .* class 'b' had 3 and has 0 \(1 class differs\)"),
        ({"cats": {"a": 2, "b": 3, "z": 1}}, r"cats: .* class 'z' had 0 and has 1 \(1 class differs\)"),
        ({"cats": {"b": 2, "a": 3}}, r"cats: .* class 'a' had 2 and has 3 \(2 classes differ\)"),
        ({"dogs": {}}, r"dogs: .* class 'c' had 4 and has 0 \(1 class differs\)"),
        ({"birds": {"d": 1}}, r"birds: .* class 'd' had 0 and has 1 \(1 class differs\)"),
    ],
)
def test_what_differs_is_named(folder: Path, now: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_unchanged({**BEGAN_WITH, **now}, folder)


def test_the_same_images_in_another_order_go_on(folder: Path) -> None:
    require_unchanged({"dogs": {"c": 4}, "cats": {"b": 3, "a": 2}}, folder)


def test_a_folder_that_does_not_say(folder: Path) -> None:
    assert classes_of(folder / "model.safetensors") == BEGAN_WITH
    (folder / "classes.json").unlink()
    assert classes_of(folder / "model.safetensors") == {}
    require_unchanged(BEGAN_WITH, folder)
