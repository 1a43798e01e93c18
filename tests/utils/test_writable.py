"""Asked before the work: whether its result can be written."""

import os
from pathlib import Path

import pytest

from puma_plugin.utils import require_writable


def test_what_can_be_written(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "deep" / "file.json", "report")
    require_writable(tmp_path / "new" / "deep", "out", is_folder=True)
    require_writable(tmp_path, "out", is_folder=True)
    (tmp_path / "old.json").write_text("{}")
    require_writable(tmp_path / "old.json", "report")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_what_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out is '.*file', which is no folder; give a folder that may be written"):
        require_writable(tmp_path / "file", "out", is_folder=True)
    with pytest.raises(ValueError, match=r"report is '.*', which is no file; give a file that may be written"):
        require_writable(tmp_path, "report")
    with pytest.raises(ValueError, match=r"out is '.*inside', but .*file is no folder; give a folder elsewhere"):
        require_writable(tmp_path / "file" / "inside", "out", is_folder=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"theirs may not be written to; give a folder elsewhere, or change its perm"):
        require_writable(tmp_path / "theirs" / "out", "out", is_folder=True)
