"""The compiled libraries themselves: what they need, what they contain, and that an install from scratch makes them."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import puma_plugin

PACKAGE = Path(puma_plugin.__file__).parent
ROOT = PACKAGE.parent
FACTS = json.loads((PACKAGE / "_build_facts.json").read_text())
BUILT = ["_C", *(["_C_cuda"] if FACTS["cuda"]["built"] else [])]


def library(name: str) -> Path:
    (path,) = PACKAGE.glob(f"{name}.*.so")
    return path


def output(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", BUILT)
def test_only_the_stable_interface_of_torch_is_used(name: str) -> None:
    """A mangled name of torch would tie the library to one torch version."""
    undefined = output("nm", "-D", "--undefined-only", library(name)).split()
    assert "torch_call_dispatcher" in undefined
    mangled = [symbol for symbol in undefined if re.match(r"_ZT?[A-Z]*N?K?(2at|3c10|5torch)", symbol)]
    assert mangled == []


@pytest.mark.parametrize("name", BUILT)
def test_no_path_of_the_building_machine(name: str) -> None:
    assert str(ROOT).encode() not in library(name).read_bytes()
    dynamic = output("readelf", "-d", library(name))
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic


@pytest.mark.parametrize("name", BUILT)
def test_no_python_and_no_cuda_toolkit_is_needed(name: str) -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", library(name)))
    assert "libtorch_cpu.so" in needed or "libtorch.so" in needed
    assert not [entry for entry in needed if "python" in entry or "cudart" in entry or "cublas" in entry]


def test_cuda_library_has_native_code_for_the_main_architectures() -> None:
    if not FACTS["cuda"]["built"]:
        pytest.skip(f"built without CUDA: {FACTS['cuda']['reason']}")
    triton = pytest.importorskip("triton")
    cuobjdump = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
    native = output(cuobjdump, "--list-elf", library("_C_cuda"))
    for architecture in ("sm_80", "sm_90a"):
        assert f".{architecture}." in native
    assert "PTX file" in output(cuobjdump, "--list-ptx", library("_C_cuda"))


def test_facts_of_the_build_are_complete() -> None:
    assert {"python", "torch", "compiler", "flags", "cuda"} <= FACTS.keys()
    if FACTS["cuda"]["built"]:
        assert {"nvcc", "architectures", "flags"} <= FACTS["cuda"].keys()
    else:
        assert FACTS["cuda"]["reason"]


CHECK = """
import sys, types
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path.insert(0, sys.argv[1])
from puma_plugin.ops import loader
from puma_plugin.cli import info
assert loader.CPU_LIBRARY.loaded, loader.CPU_LIBRARY
assert loader.CPU_MODULE.__file__.startswith(sys.argv[1]), loader.CPU_MODULE.__file__
print(info.report(info.collect()))
"""


@pytest.mark.slow
def test_install_from_scratch(tmp_path: Path) -> None:
    source, target, cache = tmp_path / "source", tmp_path / "target", tmp_path / "cache"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "LICENSE", "csrc", "puma_plugin"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    stale = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "puma_plugin"
    stale.mkdir(parents=True)
    (stale / "_C_cuda.so").write_bytes(b"left behind by an earlier build")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        ".",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        str(target),
    ]
    environment = {**os.environ, "PUMA_CUDA": "0", "PIP_CACHE_DIR": str(cache)}
    done = subprocess.run([*command, "-v"], cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "building without the CUDA operators: PUMA_CUDA=0" in done.stdout + done.stderr
    assert len(list((target / "puma_plugin").glob("_C.*.so"))) == 1
    assert not list((target / "puma_plugin").glob("_C_cuda.*"))
    text = output(sys.executable, "-c", CHECK, target)
    assert "not used: PUMA_CUDA=0" in text
    assert "_C loaded" in text
