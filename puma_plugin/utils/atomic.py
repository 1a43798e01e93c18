"""Files appear whole or not at all."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LITTLE = 1 << 20  # bytes that are free on a full disk, at most
_TORCHS_WRITER = "inline_container"
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as mkstemp names them below


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on error it is removed.

    Creates the parent folder. A reader never sees a partial file, and an interrupted write leaves the old file.

    Raises:
        OSError: among others of a full disk, with the path.

    Example:
        >>> with atomic_write("run/metrics.json") as temporary:
        ...     temporary.write_text("{}")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private to the user; give it what an ordinary open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            size = temporary.stat().st_size
            free = shutil.disk_usage(target.parent).free
            temporary.unlink()
            # torch says it with a RuntimeError of its own, as it says that a quota or a limit of sizes was reached.
            refused = isinstance(error, RuntimeError) and (_TORCHS_WRITER in str(error) or free < _LITTLE)
            if getattr(error, "errno", None) == errno.ENOSPC or refused:
                what = (
                    "no space is left for" if free < _LITTLE or not refused else "a quota, a limit or the disk refused"
                )
                raise OSError(
                    errno.ENOSPC,
                    f"{what} {target} ({size / 2**20:.1f} MiB of it were written); make room, or write elsewhere",
                ) from error
        raise


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what :func:`atomic_write` had begun in ``folder`` when its process was killed, which nothing else does.

    Only where nobody else can be writing, such as inside of ``folder_lock``.
    """
    for path in Path(folder).glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
