"""Paths as people write them."""

import os
from pathlib import Path


def full_path(path: str | os.PathLike[str]) -> str:
    """An absolute path, ``~`` at its beginning replaced by the home folder."""
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def home_path(path: str) -> Path:
    """An argument of a command: no shell replaces ``~`` in ``--out=~/runs``."""
    return Path(path).expanduser()
