"""Builds and feeds the program that runs the CUDA kernels' source on the host (runner.cpp)."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
FLAGS = ["-std=c++17", "-Og", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-unknown-pragmas"]
SIZE = {torch.int64: 8, torch.float64: 8, torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}


# With the tensor cores' products of one warp, as everywhere, or of four warps, as on sm_90a.
FORMS = {"warps": [], "warpgroups": ["-DPUMA_WARPGROUPS=1"]}


def build(form: str = "warps") -> Path:
    """The runner, compiled once per state of the sources and shared between test processes; form: of `FORMS`."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++")
    sources = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp"), *KERNELS.glob("*.h"), *KERNELS.glob("*.cuh")])
    flags = [*FLAGS, *FORMS[form]]
    contents = b"".join(path.read_bytes() for path in sources)
    digest = hashlib.sha256(contents + " ".join(flags).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"puma_kernel_host_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    runner = folder / f"runner_{digest}"
    with (folder / f"lock_{form}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not runner.exists():
            unfinished = runner.with_suffix(".part")
            command = [compiler, *flags, "-DPUMA_HOST_EXECUTION", f"-I{KERNELS}", f"-I{HERE}"]
            subprocess.run([*command, str(HERE / "runner.cpp"), "-o", str(unfinished)], check=True)
            unfinished.replace(runner)
    return runner


def to_bytes(tensor: Tensor | None) -> bytes:
    if tensor is None or tensor.numel() == 0:
        return b""
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@dataclass
class Request:
    """One case: the words that describe it, its inputs in order, and what comes back."""

    words: dict[str, object]
    inputs: list[Tensor | None]
    outputs: dict[str, tuple[tuple[int, ...], torch.dtype]]
    results: dict[str, Tensor] = field(default_factory=dict)


def run(request: Request, form: str = "warps") -> dict[str, Tensor]:
    """Runs one case, with products of a form of `FORMS`, for which it is planned unless its words say otherwise.

    Raises:
        RuntimeError: a kernel error, a sanitizer finding or a short answer.
    """
    words = {"warpgroups": int(form == "warpgroups"), **request.words}
    line = " ".join(f"{key} {value}" for key, value in words.items()) + "\n"
    data = line.encode() + b"".join(to_bytes(tensor) for tensor in request.inputs)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    process = subprocess.run([str(build(form))], input=data, capture_output=True, env=environment, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"kernels on the host failed:\n{process.stderr.decode()[-4000:]}")
    results: dict[str, Tensor] = {}
    offset = 0
    for name, (shape, dtype) in request.outputs.items():
        count = 1
        for size in shape:
            count *= size
        nbytes = count * SIZE[dtype]
        chunk = process.stdout[offset : offset + nbytes]
        offset += nbytes
        flat = (
            torch.frombuffer(bytearray(chunk), dtype=torch.uint8).view(dtype) if nbytes else torch.empty(0, dtype=dtype)
        )
        results[name] = flat.reshape(shape)
    if offset != len(process.stdout):
        raise RuntimeError(f"{len(process.stdout)} bytes came back, {offset} were expected")
    return results
