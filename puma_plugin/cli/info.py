"""``puma info``: versions, what was compiled with what, what was loaded, and if not, why, with the fix."""

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from puma_plugin import _cuda_toolkit
from puma_plugin.experiments.reporting.machine import package_versions
from puma_plugin.ops import loader

BUILD_FACTS = Path(__file__).parent.parent / "_build_facts.json"


@dataclass(frozen=True)
class Facts:
    """Everything that the report is made of, so that any machine can be described by hand.

    Attributes:
        python: version of the running Python and its platform.
        versions: of the packages; None where one is not installed.
        torch_cuda: CUDA version of the running torch, None for a CPU-only build.
        cpu: state of the CPU library.
        cuda: state of the CUDA library.
        build: contents of ``_build_facts.json``, None if there is none.
        capability: instruction set of the CPU kernels, None if they are not loaded.
        gpus: (name, (major, minor) compute capability) of each visible GPU.
        toolkits: CUDA toolkits that a rebuild would find now.
    """

    python: str
    versions: Mapping[str, str | None]
    torch_cuda: str | None
    cpu: loader.LibraryState
    cuda: loader.LibraryState
    build: Mapping[str, Any] | None
    capability: str | None = None
    gpus: tuple[tuple[str, tuple[int, int]], ...] = ()
    toolkits: tuple[_cuda_toolkit.Toolkit, ...] = ()


def collect() -> Facts:
    """The facts of this machine and this process."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # First: which GPUs there are decides about the CUDA library.
    gpus = tuple((torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(count))
    return Facts(
        python=f"{platform.python_version()} on {platform.platform()}",
        versions={**package_versions(), "torch": torch.__version__},
        torch_cuda=torch.version.cuda,
        cpu=loader.CPU_LIBRARY,
        cuda=loader.CUDA_LIBRARY,
        build=_read_build_facts(),
        capability=loader.CPU_MODULE.cpu_capability() if loader.CPU_MODULE else None,
        gpus=gpus,
        toolkits=tuple(_cuda_toolkit.find_toolkits(_cuda_toolkit.candidate_homes(os.environ))),
    )


def _read_build_facts() -> dict[str, Any] | None:
    """None where the file is missing or is not what setup.py writes."""
    try:
        facts = json.loads(BUILD_FACTS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(facts, dict) and {"python", "torch", "compiler", "flags", "cuda"} <= facts.keys()
    known = known and isinstance(facts["cuda"], dict) and {"built", "reason"} <= facts["cuda"].keys()
    return facts if known else None


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for these architectures (as in TORCH_CUDA_ARCH_LIST) runs on a GPU of this compute capability."""
    for entry in architectures.replace(" ", ";").split(";"):
        number = re.fullmatch(r"(\d+)\.(\d+)(a|f|)", entry.removesuffix("+PTX"))
        if number is None:  # a name, such as Ampere, or native
            continue
        major, minor = int(number[1]), int(number[2])
        same_family = major == capability[0] and (
            minor == capability[1] if number[3] == "a" else minor <= capability[1]
        )
        # With a or f the PTX, too, is of these GPUs alone.
        if same_family or (entry == f"{major}.{minor}+PTX" and (major, minor) <= capability):
            return True
    return False


def problems(facts: Facts) -> list[str]:
    """One line per problem, each with its fix; the most fundamental first, without its consequences."""
    torch_version = str(facts.versions["torch"])
    too_old = loader.torch_too_old(torch_version)
    if too_old:
        return [f"{too_old}. Fix: pip install 'torch>={loader.OLDEST_TORCH}'"]
    if not facts.cpu.loaded:
        fix = loader.REBUILD if facts.cpu.can_be_compiled else loader.UNSET_CAPABILITY
        return [f"CPU operators not loaded: {facts.cpu.reason}. Fix: {fix}"]
    if facts.torch_cuda is None:
        fix = f"install a CUDA build of torch, then {loader.REBUILD}"
        return [f"CUDA operators not loaded: torch {torch_version} is a CPU-only build. Fix, if there is a GPU: {fix}"]

    if too_old_gpus := list(filter(None, (loader.gpu_too_old(*gpu) for gpu in facts.gpus))):
        return [
            f"{too_old_gpus[0]}, so plain PyTorch computes there. Fix: leave it out (CUDA_VISIBLE_DEVICES), or compute "
            "on the CPU (--device cpu)"
        ]
    built = facts.build["cuda"] if facts.build else {}
    if not facts.cuda.loaded:
        # What the build said of the fix is said again, for the place it is in now.
        not_built = f"not compiled: {str(built.get('reason')).partition('; ')[0]}"
        reason = facts.cuda.reason if built.get("built", True) else not_built
        return [f"CUDA operators not loaded: {reason}. Fix: {_cuda_fix(facts)}"]

    found = []
    nvcc = str(built.get("nvcc", facts.torch_cuda))
    if nvcc.split(".")[0] != facts.torch_cuda.split(".")[0]:
        found.append(
            f"CUDA major mismatch: the CUDA operators were compiled by nvcc {nvcc}, torch has CUDA {facts.torch_cuda}. "
            f"Fix: {_cuda_fix(facts)}"
        )
    if not facts.gpus:
        found.append(
            "No GPU: the CUDA operators are loaded, but torch sees no GPU, so the CPU operators run. "
            "Fix, if there is one: check that nvidia-smi lists it and that CUDA_VISIBLE_DEVICES does not hide it"
        )
    architectures = str(built.get("architectures", ""))
    for name, capability in facts.gpus:
        if architectures and not covers(architectures, capability):
            number = ".".join(map(str, capability))
            found.append(
                f"{name} has compute capability {number}, the CUDA operators were compiled for {architectures}. "
                f"Fix: TORCH_CUDA_ARCH_LIST={number} {loader.REBUILD}"
            )
    return found


def missing_packages(versions: Mapping[str, str | None]) -> list[str]:
    """One line per package that is not installed and that most users want, with its fix."""
    found = [
        f"{name} is not installed, which {what}. Fix: pip install '{requirement}'"
        for name, what, requirement in (
            ("timm", "the models need", "timm>=1.0.31"),
            ("pytorch-metric-learning", "training and evaluation need", "pytorch-metric-learning>=2.9,<3"),
        )
        if not versions.get(name)
    ]
    if find_spec("faiss") is None:  # of which there are packages of several names
        found.append("faiss is not installed, which evaluation needs. Fix: pip install faiss-cpu, or faiss-gpu")
    return found


def _cuda_fix(facts: Facts) -> str:
    """What to do for CUDA operators that match the running torch, given what is on this machine now."""
    cuda = str(facts.torch_cuda)
    for toolkit in facts.toolkits:
        if str(toolkit.version[0]) == cuda.split(".")[0]:
            if refusal := _cuda_toolkit.host_refusal(toolkit):
                return f"{refusal}, with PUMA_CUDA=1 {loader.REBUILD}"
            return f"nvcc {toolkit.version_text} is in {toolkit.home} now: PUMA_CUDA=1 {loader.REBUILD}"
    return f"{_cuda_toolkit.GET_NVCC.format(cuda=cuda)}, then PUMA_CUDA=1 {loader.REBUILD}"


def report(facts: Facts) -> str:
    """The whole report, ready to print."""
    rows = [("python", facts.python)]
    rows += [(name, version or "not installed") for name, version in facts.versions.items()]
    rows.append(("torch's CUDA", facts.torch_cuda or "none (CPU-only build)"))
    rows += [("GPU", f"{name}, compute capability {c[0]}.{c[1]}") for name, c in facts.gpus] or [
        ("GPU", "none visible")
    ]
    rows += [("nvcc", f"{t.version_text} in {t.home}") for t in facts.toolkits] or [("nvcc", "not found")]
    rows.append(("", ""))
    if facts.build is None:
        why = f"{BUILD_FACTS.name} is damaged" if BUILD_FACTS.exists() else "nothing was compiled in this installation"
        rows.append(("build", f"not known: {BUILD_FACTS.name} is missing" if facts.cpu.loaded else why))
    else:
        cuda = facts.build["cuda"]
        rows.append(("built with", f"torch {facts.build['torch']}, Python {facts.build['python']}"))
        rows.append(("C++ compiler", f"{facts.build['compiler']}; {facts.build['flags']}"))
        compiled = f"nvcc {cuda['nvcc']} for {cuda['architectures']}; {cuda['flags']}" if cuda["built"] else ""
        rows.append(("CUDA compiler", compiled or f"not used: {cuda['reason']}"))
    rows.append(("CPU operators", _state(facts.cpu, f"kernels run on {facts.capability}")))
    rows.append(("CUDA operators", _state(facts.cuda, "")))
    lines = [f"{name:<25} {value}".rstrip() for name, value in rows]
    found = [*problems(facts), *missing_packages(facts.versions)]
    return "\n".join([*lines, "", *(found or ["Everything that was asked for is compiled and loaded."])])


def _state(library: loader.LibraryState, detail: str) -> str:
    if not library.loaded:
        return f"{library.name} not loaded: {library.reason}"
    return f"{library.name} loaded" + (f", {detail}" if detail else "")


def main() -> int:
    """Prints the report.

    Returns:
        0, or 1 if an operator is missing that this machine could use: any on the CPU, or those of CUDA next to a GPU.
    """
    facts = collect()
    print(report(facts))
    return 0 if facts.cpu.loaded and (facts.cuda.loaded or not facts.gpus) else 1
