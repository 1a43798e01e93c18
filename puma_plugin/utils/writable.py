"""Whether something can be written somewhere, asked before the work whose result it would be."""

import os
from pathlib import Path


def require_writable(path: str | os.PathLike[str], name: str, is_folder: bool = False) -> None:
    """Raise unless ``path`` can be written. Nothing is made; of a path that is not there its nearest folder is asked.

    Args:
        path: a file, or with ``is_folder`` a folder that files go into.
        name: how the message calls it.

    Raises:
        ValueError: it is of the wrong kind, lies below a file, or may not be written.
    """
    place = Path(path).absolute()
    wanted = "a folder" if is_folder else "a file"
    if place.exists() and place.is_dir() != is_folder:
        raise ValueError(f"{name} is {os.fspath(path)!r}, which is no {wanted[2:]}; give {wanted} that may be written")
    asked = place if is_folder else place.parent
    while not asked.exists() and asked != asked.parent:
        asked = asked.parent
    if not asked.is_dir():
        raise ValueError(f"{name} is {os.fspath(path)!r}, but {asked} is no folder; give {wanted} elsewhere")
    if not os.access(asked, os.W_OK | os.X_OK):
        raise ValueError(
            f"{name} is {os.fspath(path)!r}, but {asked} may not be written to; give {wanted} elsewhere, or change its "
            "permissions"
        )
