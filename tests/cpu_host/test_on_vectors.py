"""Kernels on vector registers under address and undefined-behaviour sanitizers, without torch around them."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc" / "cpu"
# Which sources a runner needs beside its own, the largest errors allowed in each line of what it prints, and the lines.
RUNNERS = {
    # float32, bfloat16, bfloat16 next to float32, float16, float16 next to float32
    "vector_adapter": (["vector_adapter.cpp", "vector_operand.cpp"], [2e-6, 1e-2, 1e-2, 1.5e-3, 1.5e-3], 10),
    # bfloat16, and next to float32
    "pair_adapter": (["pair_adapter.cpp", "vector.cpp"], [1e-2, 1e-2], 10),
    # output and gradient
    "vector_mlp": (["vector_mlp.cpp", "vector_operand.cpp"], [1e-6, 1e-6], 8),
    # out, logsumexp and gradients, of sizes 1, 6 and 10; the same of bfloat16
    "attention_tiles": (["attention_tiles.cpp"], [3e-6, 2e-6, 5e-6, 4e-3, 2e-6, 4e-2], 6),
    # products along the pool and over the samples, a prompt and its gradients
    "prompts": (["prompt_products.cpp", "prompt_pool.cpp"], [1e-5, 1e-5, 1e-6, 1e-6], 6),
}
FLAGS = ["-std=c++17", "-g", "-fno-sanitize-recover=all", f"-I{SOURCES}"]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")


def needs(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")


@pytest.fixture(scope="module", params=["g++", "clang++"])
def compiler(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return str(request.param)


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest, compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program: Path = tmp_path_factory.mktemp("cpu_host") / request.param
    files = [HERE / f"{request.param}.cpp", *(SOURCES / name for name in [*RUNNERS[request.param][0], "simd.cpp"])]
    flags = [*FLAGS, "-O1", "-fsanitize=address,undefined"]
    subprocess.run([compiler, *flags, *map(str, files), "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512", "avx512_bf16"])
def test_nothing_outside_the_tensors_and_right_results(runner: Path, capability: str) -> None:
    if (capability == "avx512_bf16") != (runner.name == "pair_adapter"):
        pytest.skip("has other loops")
    if capability == "default" and runner.name != "prompts":
        pytest.skip("has no loops without vectors")
    environment = {**os.environ, "PUMA_CPU_CAPABILITY": capability}
    found = subprocess.run([str(runner)], capture_output=True, text=True, check=False, env=environment)
    if "no more than this machine has" in found.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert found.returncode == 0, found.stderr
    lines = [[float(word) for word in line.split()] for line in found.stdout.splitlines()]
    _, tolerance, count = RUNNERS[runner.name]
    assert len(lines) == count
    for errors in lines:
        assert all(error <= most for error, most in zip(errors, tolerance, strict=True)), errors


@pytest.mark.parametrize("fused", [False, True])
def test_exp_its_error_and_special_values(tmp_path: Path, fused: bool) -> None:
    needs("g++")
    program = tmp_path / "exponential"
    flags = [*FLAGS, "-O2", "-fsanitize=undefined", *(["-mfma"] if fused else [])]
    subprocess.run(["g++", *flags, str(HERE / "exponential.cpp"), "-o", str(program)], check=True)
    found = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if fused and found.returncode == -4:
        pytest.skip("this machine has no fused multiplication")
    assert found.returncode == 0, found.stderr
    errors, special = found.stdout.splitlines()
    assert all(float(error) <= 2e-7 for error in errors.split())
    assert special.split() == ["1", "1", "0", "0", "0", "0", "1", "1"]
