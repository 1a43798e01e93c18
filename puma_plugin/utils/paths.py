"""Paths as people write them."""

import os


def full_path(path: str | os.PathLike[str]) -> str:
    """An absolute path, ``~`` at its beginning replaced by the home folder."""
    return os.path.abspath(os.path.expanduser(os.fspath(path)))
