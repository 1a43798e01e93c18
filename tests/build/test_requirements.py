"""Versions and packages that are needed: what pyproject.toml says is what everything else says."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from puma_plugin.cli.info import missing_packages
from puma_plugin.ops import loader

if sys.version_info >= (3, 11):
    import tomllib
else:
    pytest.skip("reads pyproject.toml by tomllib", allow_module_level=True)

ROOT = Path(__file__).parents[2]
if not (ROOT / "setup.py").is_file():
    pytest.skip("needs the sources", allow_module_level=True)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def lowest(requirement: str) -> str:
    """The version behind >=."""
    return next(item.version for item in Requirement(requirement).specifier if item.operator == ">=")


def test_what_a_build_needs(project: dict[str, Any]) -> None:
    required = project["build-system"]["requires"]
    for place in (text("setup.py"), loader.REBUILD, text("Makefile"), text("README.md")):
        for requirement in required:
            name = Requirement(requirement).name
            # To compile again takes the torch that is there.
            assert name == "torch" or re.search(rf"\b{name}\b", place), (name, place)
        assert f"setuptools>={lowest(next(r for r in required if r.startswith('setuptools')))}" in place


def test_the_oldest_torch(project: dict[str, Any]) -> None:
    for required in (project["build-system"]["requires"], project["project"]["dependencies"]):
        assert f"torch>={loader.OLDEST_TORCH}" in required
    major, minor = map(int, loader.OLDEST_TORCH.split("."))
    setup = text("setup.py")
    assert f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000" in setup
    assert f'("torch", torch.__version__, "{loader.OLDEST_TORCH}")' in setup
    assert f"torch=={loader.OLDEST_TORCH}.*" in text("Makefile")


def test_what_is_told_to_install(project: dict[str, Any]) -> None:
    required = project["project"]["dependencies"]
    lines = missing_packages({})
    for line in lines[:2]:  # timm and pml; faiss is an extra
        assert re.search("pip install '(.*)'", line)[1] in required  # type: ignore[index]
    row = next(line for line in text("README.md").splitlines() if line.startswith("| what it needs"))
    assert f"Python {project['project']['requires-python'].removeprefix('>=')} or newer" in row
    for name, called in (("torch", "torch"), ("timm", "timm"), ("pytorch-metric-learning", "pml")):
        assert f"{called} {lowest(next(r for r in required if Requirement(r).name == name))}" in row
