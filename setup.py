"""Builds the compiled operators: puma_plugin._C (CPU) always, puma_plugin._C_cuda when a matching nvcc is found.

Environment: PUMA_CUDA=auto|0|1, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS. Both libraries use the LibTorch stable ABI
only: built once, they load in every torch >= 2.10.
"""

import importlib.util
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

try:
    import pybind11
    import setuptools
    import torch
except ModuleNotFoundError as error:  # without isolation nobody has installed what pyproject.toml asks for
    sys.exit(
        f"puma_plugin: the build needs {error.name}, which is not in this environment: "
        "pip install 'torch>=2.10' 'setuptools>=77' ninja pybind11 numpy, or leave --no-build-isolation out"
    )
from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

for name, found, wanted in (("torch", torch.__version__, "2.10"), ("setuptools", setuptools.__version__, "77")):
    if [int(part) for part in re.findall(r"\d+", found)[:2]] < [int(part) for part in wanted.split(".")]:
        sys.exit(f"puma_plugin: the build needs {name} >= {wanted}, got {found}: pip install '{name}>={wanted}'")
if sys.platform == "win32":
    raise SystemExit("puma_plugin: its operators are built on Linux and macOS; on Windows install it inside WSL 2")

ROOT = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("_cuda_toolkit", ROOT / "puma_plugin" / "_cuda_toolkit.py")
toolkit = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = toolkit
spec.loader.exec_module(toolkit)

try:
    decision = toolkit.decide(
        os.environ.get("PUMA_CUDA", "auto"),
        torch.__version__,
        torch.version.cuda,
        toolkit.find_toolkits(toolkit.candidate_homes(os.environ)),
    )
except (ValueError, toolkit.CudaNotBuildableError) as error:
    sys.exit(f"puma_plugin: {error}")
if decision.toolkit:
    # torch.utils.cpp_extension reads both when it is imported or runs, and would ask for a GPU without them.
    os.environ["CUDA_HOME"] = decision.toolkit.home
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", toolkit.ARCHITECTURES)
else:
    print(f"puma_plugin: building without the CUDA operators: {decision.reason}", file=sys.stderr)
memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("MAX_JOBS", str(toolkit.default_jobs(cores, memory)))

from torch.utils import cpp_extension  # noqa: E402  (needs CUDA_HOME)
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402  (needs CUDA_HOME)

TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10
CXX = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", f"-ffile-prefix-map={ROOT}=.", TARGET]
CXX += ["-fno-trapping-math", "-fno-math-errno"]  # or loops with a square root stay scalar
NVCC = ["-O3", "-std=c++17", "-Xcompiler", "-fvisibility=hidden", "-Xcompiler", f"-ffile-prefix-map={ROOT}=.", TARGET]
NVCC += ["-DUSE_CUDA", "--expt-relaxed-constexpr"]
LINK = [] if sys.platform == "darwin" else ["-Wl,-s", "-Wl,--exclude-libs,ALL"]  # Apple's linker does not know them


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def cpu_extension() -> Extension:
    extension = CppExtension(
        "puma_plugin._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
        depends=sources("csrc/*.h", "csrc/cpu/*.h"),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        extra_compile_args={"cxx": CXX},
        extra_link_args=LINK,
    )
    extension.libraries.remove("torch_python")  # would tie the library to one torch
    return extension


def cuda_extension(home: str) -> Extension:
    extension = CUDAExtension(
        "puma_plugin._C_cuda",
        sources("csrc/cuda/*.cu", "csrc/cuda/*.cpp"),
        depends=sources("csrc/*.h", "csrc/cuda/*.h", "csrc/cuda/*.cuh"),
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=[f"{home}/lib"],
        extra_compile_args={"cxx": [*CXX, "-DUSE_CUDA"], "nvcc": NVCC},
        extra_link_args=LINK,
    )
    # The CUDA runtime goes in statically: the library needs a driver and torch, no toolkit.
    extension.libraries = [name for name in extension.libraries if name not in ("torch_python", "cudart")]
    extension.libraries += ["cudart_static", "rt", "pthread", "dl"]
    return extension


def compiler_version() -> str:
    """First line of what the C++ compiler says of itself.

    Raises:
        CompileError: there is none; setuptools shows the message alone.
    """
    command = [*shlex.split(os.environ.get("CXX", "c++")), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise CompileError(
            f"puma_plugin needs a C++17 compiler, and {' '.join(command)} does not work ({error}); install one, such "
            "as g++ (apt install g++), or set CXX to it"
        ) from error


def require_known_architectures() -> None:
    """CompileError for a TORCH_CUDA_ARCH_LIST that torch would refuse later, with a traceback."""
    try:
        cpp_extension._get_cuda_arch_flags()
    except ValueError as error:
        wrong = os.environ["TORCH_CUDA_ARCH_LIST"]
        raise CompileError(f"TORCH_CUDA_ARCH_LIST is {wrong!r} ({error}); give such as '8.0+PTX;9.0a'") from error


def build_facts() -> dict[str, object]:
    """What `puma info` tells about this build."""
    cuda: dict[str, object] = {"built": decision.toolkit is not None, "reason": decision.reason}
    if decision.toolkit:
        cuda["nvcc"] = decision.toolkit.version_text
        cuda["architectures"] = os.environ["TORCH_CUDA_ARCH_LIST"]
        cuda["flags"] = " ".join(NVCC)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": compiler_version(),
        "flags": " ".join(CXX),
        "cuda": cuda,
    }


class BuildModules(build_py):
    def run(self) -> None:
        # What has been removed since an earlier build in this folder must not be shipped with this one.
        for stale in (Path(self.build_lib) / "puma_plugin").glob("**/*.py"):
            stale.unlink()
        super().run()


class Build(BuildExtension):
    def run(self) -> None:
        facts = build_facts()  # first, as without a compiler there is nothing to do
        if decision.toolkit:
            require_known_architectures()
        target = Path(self.get_ext_fullpath("puma_plugin._C")).parent
        if decision.toolkit is None:  # what an earlier build left behind must not be shipped with this one
            for folder in (target, Path(self.build_lib) / "puma_plugin"):
                for stale in folder.glob("_C_cuda.*"):
                    stale.unlink()
        super().run()
        (target / "_build_facts.json").write_text(json.dumps(facts, indent=2) + "\n")


extensions = [cpu_extension()]
if decision.toolkit:
    extensions.append(cuda_extension(decision.toolkit.home))
setup(ext_modules=extensions, cmdclass={"build_py": BuildModules, "build_ext": Build})
