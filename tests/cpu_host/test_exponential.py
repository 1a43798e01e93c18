"""exp for vectors by itself: how exact it is, and what special values give."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc" / "cpu"

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="needs g++ and an x86-64 processor"
)


@pytest.mark.parametrize("fused", [False, True])
def test_error_and_special_values(tmp_path: Path, fused: bool) -> None:
    program = tmp_path / "exponential"
    flags = ["-std=c++17", "-O2", "-fsanitize=undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}"]
    flags += ["-mfma"] if fused else []
    subprocess.run(["g++", *flags, str(HERE / "exponential.cpp"), "-o", str(program)], check=True)
    found = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if fused and found.returncode == -4:
        pytest.skip("this machine has no fused multiplication")
    assert found.returncode == 0, found.stderr
    errors, special = found.stdout.splitlines()
    assert all(float(error) <= 2e-7 for error in errors.split())
    assert special.split() == ["1", "1", "0", "0", "0", "0", "1", "1"]
