"""Attention on vector registers under address and undefined-behaviour sanitizers, without torch around it."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc" / "cpu"
TOLERANCE = [3e-6, 2e-6, 5e-6]  # out, logsumexp and gradients, of sizes 1, 6 and 10

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="needs g++ and an x86-64 processor"
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("cpu_host") / "attention_tiles"
    files = [HERE / "attention_tiles.cpp", SOURCES / "attention_tiles.cpp", SOURCES / "simd.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}"]
    subprocess.run(["g++", *flags, *map(str, files), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("capability", ["avx2", "avx512"])
def test_nothing_outside_the_tensors_and_right_results(runner: Path, capability: str) -> None:
    environment = {**os.environ, "PUMA_CPU_CAPABILITY": capability}
    found = subprocess.run([str(runner)], capture_output=True, text=True, check=False, env=environment)
    if "no more than this machine has" in found.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert found.returncode == 0, found.stderr
    lines = [[float(word) for word in line.split()] for line in found.stdout.splitlines()]
    assert len(lines) == 6
    for errors in lines:
        assert all(error <= most for error, most in zip(errors, TOLERANCE, strict=True)), errors
