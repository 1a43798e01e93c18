"""What is written is strict JSON, whole or not there."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from puma_plugin.utils import write_json


def strict(text: str) -> Any:
    """The content, if the text holds no word that only Python's reader takes (NaN, Infinity)."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_undefined_numbers_are_null_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    write_json(path, {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": True, "d": None, "e": "NaN"})
    assert strict(path.read_text(encoding="utf-8")) == {
        "a": [1.5, None, [None, {"b": None}]], "c": True, "d": None, "e": "NaN",
    }  # fmt: skip


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": 1j})
    assert strict(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
