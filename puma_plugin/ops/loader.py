"""Loads the compiled operators and remembers, per library, whether that worked and if not, why.

``_C`` holds the schemas and the CPU kernels, ``_C_cuda`` the CUDA kernels; each fails by itself, under its own name.
Where a kernel is missing, the plain-PyTorch definition runs instead, after one warning (or an error if PUMA_STRICT=1).
"""

import ctypes
import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from packaging.version import Version

OLDEST_TORCH = "2.10"
# The kernels use asynchronous copies and bfloat16 of compute capability 8.0 (Ampere).
OLDEST_GPU = (8, 0)
# The operators' schemas that these Python files call; `_C.schemas` says which ones the library has.
SCHEMAS = 9
OTHER_SOURCES = "the library was compiled from other sources than these Python files"
_FOLDER = Path(__file__).resolve().parents[2]
# A source folder hides what is installed from a Python that is started in it.
_IN_SOURCES = (_FOLDER / "setup.py").is_file() and (_FOLDER / "csrc").is_dir()
_HIDDEN = f". These are the sources in {_FOLDER}; what pip may have installed elsewhere is seen from other folders"
MISSING = f"the library is missing: it was not compiled for this Python{_HIDDEN if _IN_SOURCES else ''}"
REBUILD = (
    f"pip install --no-build-isolation {'-e .' if _IN_SOURCES else '.'} (in the source folder, after pip install "
    "'setuptools>=77' ninja pybind11 numpy)"
)
CAPABILITY = "PUMA_CPU_CAPABILITY"
UNSET_CAPABILITY = f"take {CAPABILITY} out of the environment, or give one that this machine has"


@dataclass(frozen=True)
class LibraryState:
    """What became of one compiled library.

    Attributes:
        name: module name inside the package, ``_C`` or ``_C_cuda``.
        loaded: whether its operators are registered.
        reason: empty if loaded, else one sentence with the true cause.
        error: the exception behind the reason, if there was one.
        can_be_compiled: whether compiling once more, rightly, would help.
    """

    name: str
    loaded: bool
    reason: str = ""
    error: BaseException | None = None
    can_be_compiled: bool = True


def true_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions: torch's own "Could not load this library" hides the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def torch_too_old(version: str) -> str:
    """One sentence if this torch cannot run the compiled operators, else an empty string."""
    if Version(Version(version).base_version) >= Version(OLDEST_TORCH):
        return ""
    return f"torch {version} is too old: the compiled operators need torch >= {OLDEST_TORCH}"


def load_cpu_library() -> tuple[LibraryState, ModuleType | None]:
    """Imports ``puma_plugin._C``, which registers schemas and CPU kernels."""
    reason = torch_too_old(torch.__version__)
    if reason:
        return LibraryState("_C", False, reason), None
    if importlib.util.find_spec("puma_plugin._C") is None:
        return LibraryState("_C", False, MISSING), None
    try:
        module = importlib.import_module("puma_plugin._C")
    except (ImportError, OSError, RuntimeError) as error:
        cause = true_cause(error)
        return LibraryState("_C", False, cause, error, can_be_compiled=CAPABILITY not in cause), None
    if module.schemas != SCHEMAS:
        return LibraryState("_C", False, OTHER_SOURCES), None
    return LibraryState("_C", True), module


def load_cuda_library(cpu: LibraryState) -> LibraryState:
    """Loads ``puma_plugin._C_cuda`` where torch itself was built with CUDA."""
    if torch.version.cuda is None:
        return LibraryState("_C_cuda", False, f"torch {torch.__version__} is a CPU-only build")
    if not cpu.loaded:
        return LibraryState("_C_cuda", False, "the operators' schemas are in _C, which is not loaded")
    spec = importlib.util.find_spec("puma_plugin._C_cuda")
    if spec is None or spec.origin is None:
        return LibraryState("_C_cuda", False, "the library is missing: it was not compiled")
    try:
        torch.ops.load_library(spec.origin)
        schemas = ctypes.CDLL(spec.origin).puma_cuda_schemas()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # the last: another library of that name
        return LibraryState("_C_cuda", False, true_cause(error), error)
    if schemas != SCHEMAS:
        return LibraryState("_C_cuda", False, OTHER_SOURCES)
    return LibraryState("_C_cuda", True)


CPU_LIBRARY, CPU_MODULE = load_cpu_library()
CUDA_LIBRARY = load_cuda_library(CPU_LIBRARY)

# Device types whose kernels are registered. Meta needs no kernel, only the schemas and the fake kernels.
_DEVICES = frozenset((["cpu", "meta"] if CPU_LIBRARY.loaded else []) + (["cuda"] if CUDA_LIBRARY.loaded else []))
KERNEL_DEVICES = _DEVICES
_warned: set[str] = set()


def gpu_too_old(name: str, capability: tuple[int, int]) -> str:
    """One sentence if this GPU cannot run the kernels, however they are compiled, else an empty string."""
    if capability >= OLDEST_GPU:
        return ""
    number, needed = (".".join(map(str, version)) for version in (capability, OLDEST_GPU))
    return f"{name} has compute capability {number}, the CUDA operators need {needed}"


def leave_out_older_gpus() -> None:
    """Without kernels for one of the visible GPUs, all compute the plain-PyTorch definition."""
    global CUDA_LIBRARY, KERNEL_DEVICES, _DEVICES
    for index in range(torch.cuda.device_count()):
        if reason := gpu_too_old(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)):
            CUDA_LIBRARY = LibraryState("_C_cuda", False, reason, can_be_compiled=False)
            _DEVICES -= {"cuda"}
            KERNEL_DEVICES -= {"cuda"}
            return


if CUDA_LIBRARY.loaded:
    # When somebody first uses a GPU: looking now would already take memory of it.
    torch.cuda._lazy_call(leave_out_older_gpus)

_plain_lock = threading.Lock()
_plain_contexts = 0


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Inside, models and operators run their plain-PyTorch definitions (`ops.reference`), also where there are kernels.

    For what has to see into a model or needs more of it than kernels give: export to ONNX and other formats that know
    torch's operators only, second derivatives, forward mode, ``torch.func``. Slower, and the same up to rounding.

    Backward passes may run outside, unless activations are checkpointed. Holds for all threads, until the last that is
    inside leaves. For second derivatives and forward mode of a whole ViT torch's own attention has to be plain, too:
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """
    _count_plain(1)
    try:
        yield
    finally:
        _count_plain(-1)


def _count_plain(more: int) -> None:
    global KERNEL_DEVICES, _plain_contexts
    # torch.compile cannot trace a lock.
    with nullcontext() if torch.compiler.is_compiling() else _plain_lock:
        _plain_contexts += more
        KERNEL_DEVICES = frozenset() if _plain_contexts > 0 else _DEVICES


def report_fallback(device_type: str) -> None:
    """Says once per device type that the plain-PyTorch definition runs there.

    Raises:
        RuntimeError: if the environment says PUMA_STRICT=1.
    """
    # Where there are kernels, plain PyTorch was asked for.
    if device_type in _warned or device_type == "meta" or device_type in _DEVICES:
        return
    library = {"cpu": CPU_LIBRARY, "cuda": CUDA_LIBRARY}.get(device_type)
    reason = f"{library.name}: {library.reason}" if library else "there are no kernels for this kind of device"
    message = f"puma_plugin has no compiled operators for {device_type!r} tensors ({reason})."
    if os.environ.get("PUMA_STRICT") == "1":
        cause = library.error if library else None
        raise RuntimeError(f"{message} PUMA_STRICT=1 forbids the plain-PyTorch fallback. See `puma info`.") from cause
    if torch.compiler.is_compiling():  # which cannot trace a warning
        return
    _warned.add(device_type)
    fix = f"; to fix it: {REBUILD}" if library and library.can_be_compiled else ""
    warnings.warn(
        f"{message} Running the slower plain-PyTorch definition instead. `puma info` tells more{fix}.",
        RuntimeWarning,
        stacklevel=3,
    )
