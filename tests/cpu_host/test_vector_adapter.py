"""The CPU adapter on vector registers under address and undefined-behaviour sanitizers, without torch around it."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc" / "cpu"
# float32, bfloat16, bfloat16 next to float32, float16, float16 next to float32; as the runner prints them
TOLERANCE = [2e-6, 1e-2, 1e-2, 1.5e-3, 1.5e-3]

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="needs g++ and an x86-64 processor"
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("cpu_host") / "vector_adapter"
    files = [HERE / "vector_adapter.cpp", SOURCES / "vector_adapter.cpp", SOURCES / "simd.cpp"]
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
    assert len(lines) == 10
    for errors in lines:
        assert all(error <= most for error, most in zip(errors, TOLERANCE, strict=True)), errors
