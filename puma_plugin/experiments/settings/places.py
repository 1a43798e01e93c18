"""The paths among the settings of a run, kept so that they mean the same from every folder."""

import os
from collections.abc import Mapping
from typing import Any

_IN_DATA = ("root", "manifest", "few_shot", "known_bad")


def absolute_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run with absolute paths of what it reads; relative ones are below the current folder.

    A leading ``~`` stays as it is: it does not hang on the folder, and another machine may have another home.

    Args:
        settings: of a TrainConfig, as JSON types. They are left as they are.
    """
    data, model = dict(settings["data"]), dict(settings["model"])
    data |= {name: data[name] and _absolute(data[name]) for name in _IN_DATA}
    data["folders"] = {name: _absolute(folder) for name, folder in data["folders"].items()}
    if model["weights"] not in ("pretrained", "none"):
        model["weights"] = _absolute(model["weights"])
    return {**settings, "data": data, "model": model}


def _absolute(path: str) -> str:
    return path if path.startswith("~") else os.path.abspath(path)
