"""Each case that `puma info` must explain, described by hand, and the report about this machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from puma_plugin import _cuda_toolkit
from puma_plugin._cuda_toolkit import Toolkit
from puma_plugin.cli import info
from puma_plugin.experiments.reporting import machine
from puma_plugin.ops import loader
from puma_plugin.ops.loader import LibraryState

LOADED_CPU, LOADED_CUDA = LibraryState("_C", True), LibraryState("_C_cuda", True)
NOT_LOADED_CUDA = LibraryState("_C_cuda", False, "the library is missing: it was not compiled")
BUILD: dict[str, Any] = {
    "python": "3.11.7",
    "torch": "2.14.1",
    "compiler": "c++ 12",
    "flags": "-O3",
    "cuda": {
        "built": True,
        "reason": "nvcc 13.0",
        "nvcc": "13.0",
        "architectures": "8.0;9.0;12.0+PTX",
        "flags": "-O3 --use_fast_math",
    },
}
GOOD = info.Facts(
    python="3.11.7 on Linux",
    versions={
        "torch": "2.14.1+cu130",
        "timm": "1.0.31",
        "pytorch-metric-learning": "2.9.0",
        "faiss-cpu": "1.15.1",
        "faiss-gpu": None,
    },
    torch_cuda="13.0",
    cpu=LOADED_CPU,
    cuda=LOADED_CUDA,
    build=BUILD,
    capability="avx2",
    gpus=(("NVIDIA H200", (9, 0)),),
)


def not_built(reason: str) -> dict[str, Any]:
    return {**BUILD, "cuda": {"built": False, "reason": reason}}


CASES = {
    "no nvcc": (
        replace(GOOD, cuda=NOT_LOADED_CUDA, build=not_built("no nvcc found; install a CUDA toolkit"), toolkits=()),
        ["no nvcc found", "cuda-toolkit[nvcc,cccl]==13.0", "CUDA_HOME", "PUMA_CUDA=1 pip install"],
    ),
    "no nvcc at build time, there is one now": (
        replace(
            GOOD,
            cuda=NOT_LOADED_CUDA,
            build=not_built("no nvcc found"),
            toolkits=(Toolkit("/a", (12, 8)), Toolkit("/b", (13, 1))),
        ),
        ["no nvcc found", "nvcc 13.1 is in /b now", "PUMA_CUDA=1 pip install"],
    ),
    "CUDA major mismatch at build time": (
        replace(
            GOOD, cuda=NOT_LOADED_CUDA, build=not_built("CUDA major mismatch: torch has CUDA 13.0, but found nvcc 12.8")
        ),
        ["CUDA major mismatch", "torch has CUDA 13.0, but found nvcc 12.8", "Fix:"],
    ),
    "CUDA major mismatch after torch was replaced": (
        replace(GOOD, torch_cuda="12.8"),
        ["CUDA major mismatch", "compiled by nvcc 13.0, torch has CUDA 12.8", "cuda-toolkit[nvcc,cccl]==12.8"],
    ),
    "no GPU": (replace(GOOD, gpus=()), ["No GPU", "the CPU operators run", "nvidia-smi", "CUDA_VISIBLE_DEVICES"]),
    "CPU-only torch": (
        replace(
            GOOD, torch_cuda=None, cuda=LibraryState("_C_cuda", False, "CPU-only"), versions={"torch": "2.14.1+cpu"}
        ),
        ["torch 2.14.1+cpu is a CPU-only build", "install a CUDA build of torch"],
    ),
    "torch too old": (
        replace(GOOD, versions={"torch": "2.9.1"}, cpu=LibraryState("_C", False, "too old"), cuda=NOT_LOADED_CUDA),
        ["torch 2.9.1 is too old", "pip install 'torch>=2.10'"],
    ),
    "library missing": (
        replace(GOOD, cpu=LibraryState("_C", False, "the library is missing"), cuda=NOT_LOADED_CUDA, build=None),
        ["CPU operators not loaded: the library is missing", "pip install --no-build-isolation -e ."],
    ),
    "wrong instruction set asked for": (
        replace(
            GOOD,
            cpu=LibraryState("_C", False, "ImportError: PUMA_CPU_CAPABILITY must be ...", can_be_compiled=False),
            cuda=NOT_LOADED_CUDA,
        ),
        ["CPU operators not loaded: ImportError: PUMA_CPU_CAPABILITY", "Fix: take PUMA_CPU_CAPABILITY out of the"],
    ),
    "CUDA library missing": (
        replace(GOOD, cuda=NOT_LOADED_CUDA),
        ["CUDA operators not loaded: the library is missing", "PUMA_CUDA=1 pip install"],
    ),
    "CUDA library broken": (
        replace(GOOD, cuda=LibraryState("_C_cuda", False, "OSError: undefined symbol: xyz")),
        ["CUDA operators not loaded: OSError: undefined symbol: xyz", "Fix:"],
    ),
    "GPU not covered": (
        replace(
            GOOD, gpus=(("NVIDIA B200", (10, 0)),), build={**BUILD, "cuda": {**BUILD["cuda"], "architectures": "9.0a"}}
        ),
        ["NVIDIA B200 has compute capability 10.0", "compiled for 9.0a", "TORCH_CUDA_ARCH_LIST=10.0"],
    ),
    "GPU too old for the kernels": (
        replace(GOOD, gpus=(("NVIDIA H200", (9, 0)), ("Tesla T4", (7, 5)))),
        ["Tesla T4 has compute capability 7.5, the CUDA operators need 8.0", "plain PyTorch", "CUDA_VISIBLE_DEVICES"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_one_clear_line(case: str) -> None:
    facts, expected = CASES[case]
    found = info.problems(facts)
    assert len(found) == 1
    assert "\n" not in found[0]
    assert all(part in found[0] for part in expected), found[0]
    assert "Fix" in found[0]
    assert found[0] in info.report(facts).splitlines()


def test_no_problem_where_there_is_none() -> None:
    assert info.problems(GOOD) == []
    assert info.report(replace(GOOD, toolkits=(Toolkit("/usr/local/cuda", (13, 0)),))).splitlines() == [
        "python                    3.11.7 on Linux",
        "torch                     2.14.1+cu130",
        "timm                      1.0.31",
        "pytorch-metric-learning   2.9.0",
        "faiss-cpu                 1.15.1",
        "faiss-gpu                 not installed",
        "torch's CUDA              13.0",
        "GPU                       NVIDIA H200, compute capability 9.0",
        "nvcc                      13.0 in /usr/local/cuda",
        "",
        "built with                torch 2.14.1, Python 3.11.7",
        "C++ compiler              c++ 12; -O3",
        "CUDA compiler             nvcc 13.0 for 8.0;9.0;12.0+PTX; -O3 --use_fast_math",
        "CPU operators             _C loaded, kernels run on avx2",
        "CUDA operators            _C_cuda loaded",
        "",
        "Everything that was asked for is compiled and loaded.",
    ]


@pytest.mark.parametrize(
    ("missing", "starts", "fix"),
    [
        ("timm", "timm is not installed, which the models need", "'timm>=1.0.31'"),
        ("pytorch-metric-learning", "pytorch-metric-learning is not", "'pytorch-metric-learning>=2.9,<3'"),
        ("faiss-cpu", "faiss is not installed, which evaluation needs", "faiss-cpu, or faiss-gpu"),
    ],
)
def test_packages_that_most_users_want_are_missed_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, missing: str, starts: str, fix: str
) -> None:
    if missing == "faiss-cpu":
        monkeypatch.setattr(info, "find_spec", lambda name: None)
    (line,) = info.missing_packages({**GOOD.versions, missing: None})
    assert line.startswith(starts)
    assert line.endswith(f"Fix: pip install {fix}")
    assert info.report(replace(GOOD, versions={**GOOD.versions, missing: None})).endswith(line)


def test_any_package_of_faiss_will_do() -> None:
    """There are others than those whose versions are shown, such as conda's."""
    assert info.missing_packages({**GOOD.versions, "faiss-cpu": None, "faiss-gpu": None}) == []


def test_report_where_there_is_nothing_but_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu, cuda = LibraryState("_C", False, "not compiled"), LibraryState("_C_cuda", False, "torch is a CPU-only build")
    monkeypatch.setattr(info, "BUILD_FACTS", tmp_path / "facts.json")
    bare = info.Facts("3.11.7 on Linux", {"torch": "2.14.1+cpu"}, None, cpu, cuda, build=None)
    text = info.report(bare)
    assert text.splitlines()[2:9] == [
        "torch's CUDA              none (CPU-only build)",
        "GPU                       none visible",
        "nvcc                      not found",
        "",
        "build                     nothing was compiled in this installation",
        "CPU operators             _C not loaded: not compiled",
        "CUDA operators            _C_cuda not loaded: torch is a CPU-only build",
    ]
    built = info.report(replace(bare, cpu=LOADED_CPU, build=not_built("torch 2.14.1+cpu is a CPU-only build")))
    assert "CUDA compiler             not used: torch 2.14.1+cpu is a CPU-only build" in built
    assert "build                     not known: facts.json is missing" in info.report(replace(bare, cpu=LOADED_CPU))
    info.BUILD_FACTS.touch()
    assert "build                     facts.json is damaged" in info.report(bare)


def test_what_the_build_did_not_record_is_no_problem() -> None:
    assert info.problems(replace(GOOD, build=None)) == []
    (problem,) = info.problems(replace(GOOD, build=None, cuda=NOT_LOADED_CUDA))
    assert problem.startswith("CUDA operators not loaded: the library is missing: it was not compiled. Fix: ")


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0;9.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0;9.0", (10, 0), False),
        ("8.0;9.0+PTX", (10, 0), True),
        ("9.0a", (9, 0), True),
        ("8.0 9.0", (9, 0), True),
        ("9.0+PTX", (8, 9), False),
        ("9.0a+PTX", (9, 0), True),
        ("9.0a+PTX", (10, 0), False),
        ("10.0f+PTX", (12, 0), False),
        ("Ampere;native", (8, 0), False),
        ("10.0a", (10, 3), False),
        ("10.0f", (10, 3), True),
    ],
)
def test_architecture_coverage(architectures: str, capability: tuple[int, int], expected: bool) -> None:
    assert info.covers(architectures, capability) is expected


def test_report_about_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = info.main()
    text = capsys.readouterr().out
    assert code == 0
    assert "_C loaded, kernels run on" in text
    assert info.report(info.collect()) in text


def test_facts_of_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, nvcc = (("NVIDIA H200", (9, 0)), ("Tesla T4", (7, 5))), Toolkit("/usr/local/cuda", (13, 0))
    monkeypatch.setattr(torch, "__version__", "2.14.1+git1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: gpus[number][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: gpus[number][1])
    monkeypatch.setattr(_cuda_toolkit, "find_toolkits", lambda homes: [nvcc] if "/usr/local/cuda" in homes else [])
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "numpy", "no-such-package"))
    facts = info.collect()
    # Of torch what runs, not what was installed.
    assert facts.versions == {"torch": "2.14.1+git1", "numpy": numpy.__version__, "no-such-package": None}
    assert (facts.gpus, facts.toolkits) == (gpus, (nvcc,))
    # A driver that does not work.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert info.collect().gpus == ()


def test_facts_of_the_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert loader.CPU_MODULE is not None
    assert Path(loader.CPU_MODULE.__file__).with_name("_build_facts.json") == info.BUILD_FACTS
    monkeypatch.setattr(info, "BUILD_FACTS", tmp_path / "facts.json")
    assert info.collect().build is None
    info.BUILD_FACTS.write_text(json.dumps(BUILD))
    assert info.collect().build == BUILD
    assert info.collect().capability == loader.CPU_MODULE.cpu_capability()
    for damaged in ("", "{", "[]", "{}", json.dumps({**BUILD, "cuda": {}}), json.dumps({**BUILD, "cuda": None})):
        info.BUILD_FACTS.write_text(damaged)
        assert info.collect().build is None
    monkeypatch.setattr(loader, "CPU_MODULE", None)
    assert info.collect().capability is None


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (GOOD, 0),
        (replace(GOOD, cuda=NOT_LOADED_CUDA), 1),
        (replace(GOOD, cuda=NOT_LOADED_CUDA, gpus=()), 0),
        (replace(GOOD, cpu=LibraryState("_C", False, "not compiled")), 1),
    ],
)
def test_exit_code_says_whether_an_operator_is_missing(
    monkeypatch: pytest.MonkeyPatch, facts: info.Facts, code: int
) -> None:
    monkeypatch.setattr(info, "collect", lambda: facts)
    assert info.main() == code
