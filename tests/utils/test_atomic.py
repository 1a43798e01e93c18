"""Files appear whole or not at all."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from puma_plugin.utils import atomic_write, remove_unfinished

KILLED = """
import os, signal, sys
from puma_plugin.utils import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_full_disk_is_named_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / "state.pt"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    message = r"no space is left for .*state\.pt \(1\.0 MiB of it were written\); make room, or write elsewhere"
    with pytest.raises(OSError, match=message) as caught, atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_bytes(bytes(1 << 20))
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    # torch.save raises a RuntimeError of its own; what else is wrong with it is left as it is.
    for free, kind in ((0, OSError), (1 << 30, RuntimeError)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        expected = pytest.raises(kind, match="no space is left" if kind is OSError else "unexpected pos")
        with expected, atomic_write(path):
            raise RuntimeError("unexpected pos 64 vs 0")
    # Its writer says so of quotas and limits, too, while there is space on the disk.
    expected = pytest.raises(OSError, match=r"a quota, a limit or the disk refused .*state\.pt")
    with expected, atomic_write(path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 607552 vs 607440")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_what_a_killed_process_had_begun_can_be_removed(tmp_path: Path) -> None:
    path, own = tmp_path / "checkpoint.pt", tmp_path / ".notes.tmp"
    path.write_text("old")
    own.write_text("the user's")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 3
    remove_unfinished(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {path.name: "old", own.name: "the user's"}
    remove_unfinished(tmp_path / "nowhere")
