"""Paths as people write them."""

from pathlib import Path

import pytest

from puma_plugin.utils.paths import full_path, home_path


def test_home_and_the_current_folder_are_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.chdir(tmp_path)
    assert full_path("~/birds") == "/home/ann/birds"
    assert full_path("birds/../cars") == f"{tmp_path}/cars"
    assert full_path(Path("/data/~")) == "/data/~"


def test_arguments_of_commands_keep_what_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert home_path("~/runs") == Path("/home/ann/runs")
    assert home_path("runs") == Path("runs")
