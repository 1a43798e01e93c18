"""One process at a time in a folder of results."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Data loader workers of a process that was killed hold its lock for a few seconds more.
PATIENCE = 10.0


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be. It ends with the process, however that ends.

    Args:
        patience: seconds to wait for another process before giving up.

    Raises:
        ValueError: another process holds it.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    # Without what filelock does on file systems without locks: the file of a process that was killed on another machine
    # would lock for good.
    lock = FileLock(place / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise ValueError(
            f"out is {os.fspath(folder)!r}, where another process is at work; wait for it, or give another --out"
        ) from error
    except (NotImplementedError, OSError) as error:
        # A file system without locks: better without than not at all.
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()
