"""One process at a time in a folder."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from puma_plugin.utils import folder_lock

HOLD = """
import sys, time
from puma_plugin.utils import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_waits_outside(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        message = "out is .*, where another process is at work; wait for it, or give another --out"
        with pytest.raises(ValueError, match=message), folder_lock(tmp_path / "out", patience=0.2):
            pass
        with folder_lock(tmp_path / "elsewhere", patience=0.2):
            pass
        other.kill()
    # However it ended.
    with folder_lock(tmp_path / "out"):
        pass


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_lock(tmp_path):
        raise KeyError
    with folder_lock(tmp_path, patience=0.2):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_does_not_stop_the_work(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    with folder_lock(tmp_path, patience=0.2):
        pass
    # The file may have come with a copied folder, or be of a process that was killed on another machine.
    for content in ("", "4242\nanother-machine\n"):
        (tmp_path / ".lock").write_text(content)
        with folder_lock(tmp_path, patience=0.2):
            pass
