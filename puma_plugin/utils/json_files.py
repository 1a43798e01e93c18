"""JSON that every reader takes: strict JSON knows neither NaN nor infinity."""

import json
import math
import os
from typing import Any

from puma_plugin.utils.atomic import atomic_write


def json_ready(content: Any) -> Any:
    """Nested dictionaries and lists with None (JSON's null) in place of every NaN and infinity; tuples become lists."""
    if isinstance(content, dict):
        return {key: json_ready(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [json_ready(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what :func:`write_json` wrote.

    Raises:
        ValueError: no such file, or a damaged one.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise ValueError(f"{os.fspath(path)} is missing; without it the folder cannot be used") from error
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is damaged and cannot be read as JSON ({error})") from error


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 1) -> None:
    """Write ``content`` as strict JSON, whole or not at all; undefined numbers become null (:func:`json_ready`).

    Raises:
        TypeError: something in it is no JSON type.
    """
    text = json.dumps(json_ready(content), indent=indent, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
