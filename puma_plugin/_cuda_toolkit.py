"""Finds a CUDA compiler and decides whether the CUDA operators can be built. Standard library only: setup.py loads this
file by its path, before the package and its dependencies exist."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Native code for 8.x and 9.0 (9.0a: with Hopper's own tensor-core instructions), and PTX, which the driver compiles for
# later ones: each further architecture would cost another third of the build's time. TORCH_CUDA_ARCH_LIST overrides it.
ARCHITECTURES = "8.0+PTX;9.0a"
GET_NVCC = "install a CUDA toolkit, or `pip install 'cuda-toolkit[nvcc,cccl]=={cuda}.*'`, or set CUDA_HOME"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder (what CUDA_HOME should be) and its nvcc's version."""

    home: str
    version: tuple[int, int]

    @property
    def version_text(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class Decision:
    """Whether to build the CUDA operators: the toolkit to use, or None and the reason in one sentence."""

    toolkit: Toolkit | None
    reason: str


class CudaNotBuildableError(RuntimeError):
    """PUMA_CUDA=1 was asked for, and something is missing."""


def candidate_homes(environ: Mapping[str, str]) -> list[str]:
    """Folders where a toolkit may be, best first: CUDA_HOME, nvcc on PATH, /usr/local/cuda, the nvidia pip packages."""
    homes = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    if on_path:
        homes.append(str(Path(on_path).resolve().parent.parent))
    homes.append("/usr/local/cuda")
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    homes += sorted((str(folder) for folder in packages.glob("cu*")), reverse=True)
    return list(dict.fromkeys(homes))


def parse_nvcc_version(text: str) -> tuple[int, int] | None:
    """(major, minor) out of what ``nvcc --version`` prints."""
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def find_toolkits(homes: Sequence[str]) -> list[Toolkit]:
    """The toolkits among these folders: ``bin/nvcc`` runs and says its version, and the runtime's header is there (a
    wrapper script named nvcc, say in /usr/local/bin, has no toolkit around it)."""
    toolkits = []
    for home in homes:
        nvcc = Path(home) / "bin" / "nvcc"
        headers = [Path(home) / "include", *Path(home).glob("targets/*/include")]
        if not os.access(nvcc, os.X_OK) or not any((folder / "cuda_runtime.h").exists() for folder in headers):
            continue
        try:
            answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
        except OSError:  # of another machine's format
            continue
        version = parse_nvcc_version(answer.stdout)
        if version:
            toolkits.append(Toolkit(home, version))
    return toolkits


def host_refusal(toolkit: Toolkit) -> str:
    """Why this nvcc cannot work with the C++ compiler, in one line; empty if it can.

    Each takes compilers up to some version only. torch hands on ``CC``, if it is set.
    """
    with_compiler = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []
    command = [f"{toolkit.home}/bin/nvcc", *with_compiler, "-x", "cu", "-E", os.devnull, "-o", os.devnull]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    if answer.returncode == 0:
        return ""
    lines = [line for line in answer.stderr.splitlines() if "error" in line.lower()] or [f"exit {answer.returncode}"]
    # "host_config.h:137:2: error: #error -- unsupported GNU version! gcc versions later than 15 are ..."
    said = re.sub(r"^.*?error\W+(?:error\W+)?", "", lines[0]).split(" The nvcc flag")[0].strip()
    return (
        f"nvcc {toolkit.version_text} in {toolkit.home} does not take the C++ compiler ({said[:200]}); set CC and CXX "
        "to an older one that is installed too, such as CC=gcc-14 CXX=g++-14"
    )


def decide(mode: str, torch_version: str, torch_cuda: str | None, toolkits: Sequence[Toolkit]) -> Decision:
    """Whether the CUDA operators are built.

    Args:
        mode: PUMA_CUDA: ``auto`` (build what can be built), ``0`` (never), ``1`` (or fail).
        torch_version: of the torch that the build uses.
        torch_cuda: ``torch.version.cuda``, None for a CPU-only build.
        toolkits: what `find_toolkits` found.

    Raises:
        ValueError: an unknown mode.
        CudaNotBuildableError: mode ``1`` and something is missing; the message says what.
    """
    if mode not in ("auto", "0", "1"):
        raise ValueError(f"PUMA_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return Decision(None, "PUMA_CUDA=0")
    if torch_cuda is None:
        reason = f"torch {torch_version} is a CPU-only build; install a CUDA build of torch"
    elif not toolkits:
        reason = f"no nvcc found; {GET_NVCC.format(cuda=torch_cuda)}"
    else:
        major = int(torch_cuda.split(".")[0])
        refusals = {toolkit: host_refusal(toolkit) for toolkit in toolkits if toolkit.version[0] == major}
        for chosen, refusal in refusals.items():
            if not refusal:
                return Decision(chosen, f"nvcc {chosen.version_text} for torch {torch_version} (CUDA {torch_cuda})")
        found = ", ".join(f"nvcc {toolkit.version_text} in {toolkit.home}" for toolkit in toolkits)
        fix = GET_NVCC.format(cuda=torch_cuda)
        reason = next(
            iter(refusals.values()), f"CUDA major mismatch: torch has CUDA {torch_cuda}, but found {found}; {fix}"
        )
    if mode == "1":
        raise CudaNotBuildableError(f"PUMA_CUDA=1, but the CUDA operators cannot be built: {reason}")
    return Decision(None, reason)


def default_jobs(cores: int, memory_bytes: int) -> int:
    """Compilers to run side by side: one per core, 2 GB of memory each."""
    return max(1, min(cores, memory_bytes // 2_000_000_000))
