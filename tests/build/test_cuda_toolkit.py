"""How a build finds nvcc and decides about the CUDA operators."""

import os
import sysconfig
from pathlib import Path

import pytest

from puma_plugin._cuda_toolkit import (
    ARCHITECTURES,
    CudaNotBuildableError,
    Toolkit,
    candidate_homes,
    decide,
    default_jobs,
    find_toolkits,
    host_refusal,
    parse_nvcc_version,
)
from puma_plugin.cli.info import covers

CUDA_12, CUDA_13 = Toolkit("/cuda-12", (12, 8)), Toolkit("/cuda-13", (13, 0))

SKIPS = {
    "CPU-only torch": (("2.14.1+cpu", None, [CUDA_13]), ["torch 2.14.1+cpu is a CPU-only build"]),
    "no nvcc": (("2.14.1", "13.0", []), ["no nvcc found", "cuda-toolkit[nvcc,cccl]==13.0.*", "CUDA_HOME"]),
    "major mismatch": (
        ("2.14.1", "13.0", [CUDA_12]),
        ["CUDA major mismatch", "torch has CUDA 13.0", "nvcc 12.8 in /cuda-12", "cuda-toolkit[nvcc,cccl]==13.0.*"],
    ),
}


@pytest.mark.parametrize("case", SKIPS)
def test_auto_skips_with_a_reason_and_1_fails_with_it(case: str) -> None:
    (torch_version, torch_cuda, toolkits), expected = SKIPS[case]
    decision = decide("auto", torch_version, torch_cuda, toolkits)
    assert decision.toolkit is None
    assert "\n" not in decision.reason
    assert all(part in decision.reason for part in expected), decision.reason
    with pytest.raises(CudaNotBuildableError, match="PUMA_CUDA=1") as error:
        decide("1", torch_version, torch_cuda, toolkits)
    assert decision.reason in str(error.value)


@pytest.mark.parametrize("mode", ["auto", "1"])
def test_first_matching_toolkit_is_used(mode: str) -> None:
    decision = decide(mode, "2.14.1", "13.0", [CUDA_12, CUDA_13, Toolkit("/other", (13, 1))])
    assert decision.toolkit == CUDA_13
    assert decide(mode, "2.14.1", "12.6", [CUDA_13, CUDA_12]).toolkit == CUDA_12


def test_0_never_builds() -> None:
    assert decide("0", "2.14.1", "13.0", [CUDA_13]).toolkit is None


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PUMA_CUDA must be auto, 0 or 1, got 'yes'"):
        decide("yes", "2.14.1", "13.0", [CUDA_13])


REFUSES_GCC_16 = """
case "$*" in
  *gcc-14*) ;;
  *--version*) ;;
  *) echo "In file included from x.h:82," >&2
     said="unsupported GNU version! gcc versions later than 15 are not supported!"
     echo "x.h:137:2: error: #error -- $said The nvcc flag 'x'" >&2
     exit 1;;
esac
"""


def make_toolkit(home: Path, version: str, header: bool = True, more: str = "") -> Path:
    """A folder that looks like a toolkit, with a script for nvcc."""
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.88'\n{more}")
    nvcc.chmod(0o755)
    if header:
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
    return home


def test_order_is_cuda_home_then_path_then_the_rest(tmp_path: Path) -> None:
    first, second = make_toolkit(tmp_path / "a", "12.8"), make_toolkit(tmp_path / "b", "13.0")
    homes = candidate_homes({"CUDA_HOME": str(first), "PATH": str(second / "bin")})
    assert homes[:3] == [str(first), str(second), "/usr/local/cuda"]
    assert candidate_homes({"PATH": str(second / "bin"), "CUDA_HOME": ""})[0] == str(second)
    assert find_toolkits(homes[:2]) == [Toolkit(str(first), (12, 8)), Toolkit(str(second), (13, 0))]


def test_an_nvcc_that_does_not_take_the_compiler_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA 13.0 beside GCC 16."""
    monkeypatch.delenv("CC", raising=False)
    make_toolkit(tmp_path / "a", "13.0", more=REFUSES_GCC_16)
    refusing = Toolkit(str(tmp_path / "a"), (13, 0))
    decision = decide("auto", "2.14.1", "13.0", [refusing])
    assert decision.toolkit is None
    assert decision.reason == (
        f"nvcc 13.0 in {tmp_path}/a does not take the C++ compiler (unsupported GNU version! gcc versions later than "
        "15 are not supported!); set CC and CXX to an older one that is installed too, such as CC=gcc-14 CXX=g++-14"
    )
    with pytest.raises(CudaNotBuildableError, match=r"PUMA_CUDA=1, but .* does not take the C\+\+ compiler"):
        decide("1", "2.14.1", "13.0", [refusing])
    make_toolkit(tmp_path / "b", "13.1")
    other = Toolkit(str(tmp_path / "b"), (13, 1))
    assert decide("auto", "2.14.1", "13.0", [refusing, other]).toolkit == other
    monkeypatch.setenv("CC", "gcc-14")
    assert decide("auto", "2.14.1", "13.0", [refusing, other]).toolkit == refusing


@pytest.mark.skipif(not find_toolkits(candidate_homes(os.environ)), reason="needs an nvcc")
def test_the_nvcc_of_this_machine_takes_its_compiler_and_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = find_toolkits(candidate_homes(os.environ))[0]
    assert host_refusal(toolkit) == ""
    monkeypatch.setenv("CC", "/bin/false")
    assert "does not take the C++ compiler (" in host_refusal(toolkit)


def test_pip_packages_come_last_the_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cu12", "cu13", "nccl"):
        (tmp_path / "nvidia" / name).mkdir(parents=True)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    without_nvcc = {"PATH": str(tmp_path)}
    packages = [f"{tmp_path}/nvidia/cu13", f"{tmp_path}/nvidia/cu12"]
    assert candidate_homes(without_nvcc) == ["/usr/local/cuda", *packages]


def test_folders_without_a_working_toolkit_are_passed_over(tmp_path: Path) -> None:
    wrapper = make_toolkit(tmp_path / "wrapper", "13.0", header=False)
    silent = make_toolkit(tmp_path / "silent", "13.0")
    (silent / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    target = make_toolkit(tmp_path / "target", "13.0", header=False)
    (target / "targets" / "x86_64-linux" / "include").mkdir(parents=True)
    (target / "targets" / "x86_64-linux" / "include" / "cuda_runtime.h").touch()
    foreign = make_toolkit(tmp_path / "foreign", "13.0")
    (foreign / "bin" / "nvcc").write_bytes(b"\x00of another machine")
    homes = [str(home) for home in (tmp_path / "absent", wrapper, silent, foreign, target)]
    assert find_toolkits(homes) == [Toolkit(str(target), (13, 0))]


def test_nvcc_version() -> None:
    assert parse_nvcc_version("Cuda compilation tools, release 13.0, V13.0.88") == (13, 0)
    assert parse_nvcc_version("command not found") is None


def test_architectures_cover_the_gpus_from_8_0_on() -> None:
    assert all(covers(ARCHITECTURES, capability) for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)))


def test_jobs_by_cores_and_memory() -> None:
    assert default_jobs(16, 64_000_000_000) == 16
    assert default_jobs(16, 8_000_000_000) == 4
    assert default_jobs(16, 7_999_999_999) == 3
    assert default_jobs(2, 1_000_000_000) == 1


def test_every_found_toolkit_has_an_nvcc() -> None:
    for toolkit in find_toolkits(candidate_homes(os.environ)):
        assert (Path(toolkit.home) / "bin" / "nvcc").exists()
