"""`puma bench` finds the benchmarks, or says where they are."""

from pathlib import Path

import pytest

import puma_plugin
from puma_plugin.cli import bench

ROOT = Path(__file__).resolve().parents[2]


def test_finds_the_checkout_that_the_package_runs_from(tmp_path: Path) -> None:
    assert bench.find_checkout(tmp_path) == ROOT


def test_an_installed_package_finds_the_checkout_around_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puma_plugin, "__file__", str(tmp_path / "site-packages" / "puma_plugin" / "__init__.py"))
    assert bench.find_checkout(ROOT / "benchmarks" / "suites") == ROOT
    with pytest.raises(FileNotFoundError, match="Clone the repository"):
        bench.find_checkout(tmp_path)


def test_help_comes_from_the_benchmarks(capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--help"]) == 0
    assert "usage: puma bench" in capfd.readouterr().out
