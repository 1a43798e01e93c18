"""What the compiler made of the CUDA kernels, read from the built library: no GPU needed.

Pinned per kernel: registers, no stack and no local memory (so nothing is spilled), tensor-core instructions, 128-bit
accesses, no atomics; and from these and the launch plan, how many warps a multiprocessor holds.
"""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from kernel_host import Request, run

from puma_plugin.ops.stochastic_adapter import _prepared_bytes

PACKAGE = Path(__file__).resolve().parents[2] / "puma_plugin"
ARCHITECTURES = ["sm_80", "sm_90a"]
BRANCHES = {"0": "none", "1": "wide", "2": "narrow"}  # puma::Branch


def find_cuobjdump() -> str | None:
    found = shutil.which("cuobjdump")
    triton = find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        shipped = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(shipped) if shipped.exists() else None
    return found


CUOBJDUMP = find_cuobjdump()
LIBRARY = next(iter(sorted(PACKAGE.glob("_C_cuda*.so"))), None)
needs_library = pytest.mark.skipif(
    CUOBJDUMP is None or LIBRARY is None or shutil.which("c++filt") is None,
    reason="needs the built CUDA library, cuobjdump (comes with triton) and c++filt",
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def dump(*arguments: str) -> str:
    command = [str(CUOBJDUMP), *arguments, str(LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel: its readable name, as in kernels.cuh, and what it takes."""

    name: str  # AdapterKernel<bf16, float, 128, true, none>
    symbol: str
    registers: int
    stack: int
    local: int
    static_shared: int


@cache
def kernels(architecture: str) -> dict[str, Kernel]:
    text = dump("--dump-resource-usage", "-arch", architecture)
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    rows = re.findall(pattern, text)
    names = subprocess.run(
        ["c++filt"], input="\n".join(row[0] for row in rows), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    result = {}
    for (symbol, registers, stack, shared, local), full in zip(rows, names, strict=True):
        match = re.search(r"entry<(.*)>\(", full)
        if match is None:
            continue
        short = match.group(1).replace("puma::", "").strip().replace("> >", ">>")
        short = re.sub(r"\(Branch\)(\d)", lambda found: BRANCHES[found[1]], short)
        result[short] = Kernel(short, symbol, int(registers), int(stack), int(local), int(shared))
    return result


@cache
def instructions(architecture: str, symbol: str) -> Counter[str]:
    text = dump("-sass", "-arch", architecture, "-fun", symbol)
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Zx0-9_.]*)", text, re.MULTILINE)
    return Counter(found)


def count(operations: Counter[str], prefix: str) -> int:
    return sum(number for operation, number in operations.items() if operation.startswith(prefix))


# Threads per block, and registers per thread at most. 12 warps leave 168 registers, 8 leave 255.
PINNED = {
    "AdapterKernel<bf16, bf16, 64, false, none>": (384, 136),
    "AdapterKernel<bf16, bf16, 64, true, none>": (384, 136),
    "AdapterKernel<bf16, bf16, 128, false, none>": (384, 168),
    "AdapterKernel<bf16, bf16, 128, false, wide>": (384, 168),
    "AdapterKernel<bf16, bf16, 128, true, none>": (384, 168),
    "AdapterKernel<bf16, float, 128, false, none>": (384, 168),
    "AdapterKernel<bf16, float, 128, false, narrow>": (384, 168),
    "AdapterKernel<bf16, float, 128, false, wide>": (256, 184),
    "AdapterKernel<bf16, float, 128, true, none>": (384, 168),
    "AdapterKernel<f16, f16, 128, false, none>": (384, 168),
    "AdapterKernel<f16, f16, 128, true, none>": (384, 168),
    "AdapterKernel<f16, float, 128, false, narrow>": (384, 168),
    "AdapterKernel<f16, float, 128, true, none>": (384, 168),
    "AdapterKernel<float, float, 64, false, none>": (256, 216),
    "AdapterKernel<float, float, 64, true, none>": (256, 216),
    "AdapterKernel<float, float, 128, false, none>": (256, 255),
    "AdapterKernel<float, float, 128, false, wide>": (256, 255),
    "AdapterKernel<float, float, 128, true, none>": (256, 255),
    "WeightGradientKernel<bf16, 64>": (256, 120),
    "WeightGradientKernel<bf16, 128>": (256, 184),
    "WeightGradientKernel<f16, 128>": (256, 184),
    "WeightGradientKernel<float, 128>": (256, 200),
    "WeightGradientSumKernel<bf16, 128>": (256, 64),
    "PrepareKernel<bf16, 128>": (256, 64),
    "PromptWeightsKernel<float>": (256, 128),
    "PromptMatchKernel<float>": (256, 128),
    "PromptGradientFirstKernel<float>": (256, 128),
    "PromptGradientSecondKernel<float>": (512, 128),
}


@needs_library
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_spilled(architecture: str) -> None:
    found = kernels(architecture)
    assert len(found) >= 60, f"only {len(found)} kernels in {LIBRARY}"
    spilled = [kernel.name for kernel in found.values() if kernel.stack > 0 or kernel.local > 0]
    assert not spilled


@needs_library
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", PINNED)
def test_registers(architecture: str, name: str) -> None:
    threads, most = PINNED[name]
    kernel = kernels(architecture)[name]
    assert kernel.registers <= most
    assert -(-kernel.registers // 8) * 8 * threads <= 65536, "the block does not fit into the register file"


# A step of 2 groups: 16 tiles in the first product and 8 times as many groups of r in the second, two instructions per
# group and tile, six in TF32. Four warps together (HGMMA): one instruction per half group in the first product, in two
# copies of its loop in the forward on a float stream; and one per half group of r in the second, there per group of
# columns.
TENSOR_CORE = {
    ("sm_80", "AdapterKernel<bf16, bf16, 128, false, none>"): {"HMMA.16816.F32.BF16": 128},
    ("sm_80", "AdapterKernel<bf16, bf16, 128, true, none>"): {"HMMA.16816.F32.BF16": 128},
    ("sm_80", "AdapterKernel<f16, float, 128, false, narrow>"): {"HMMA.16816.F32": 128},
    ("sm_80", "AdapterKernel<float, float, 128, false, none>"): {"HMMA.1688.F32.TF32": 384},
    ("sm_90a", "AdapterKernel<bf16, bf16, 128, false, none>"): {"HGMMA.64x128x16.F32.BF16": 4, "HGMMA.64x64x16": 8},
    ("sm_90a", "AdapterKernel<bf16, bf16, 128, true, none>"): {"HGMMA.64x128x16.F32.BF16": 4, "HGMMA.64x64x16": 8},
    ("sm_90a", "AdapterKernel<f16, float, 128, false, narrow>"): {"HGMMA.64x128x16.F32": 8, "HGMMA.64x32x16": 16},
    ("sm_90a", "AdapterKernel<float, float, 128, false, none>"): {"HMMA.1688.F32.TF32": 384},
    ("sm_80", "WeightGradientKernel<bf16, 128>"): {"HMMA.16816.F32.BF16": 64},
    ("sm_80", "WeightGradientKernel<float, 128>"): {"HMMA.1688.F32.TF32": 48},
    ("sm_90a", "WeightGradientKernel<bf16, 128>"): {"HGMMA.64x128x16.F32.BF16": 4},
    ("sm_90a", "WeightGradientKernel<float, 128>"): {"HMMA.1688.F32.TF32": 48},
}


@needs_library
@pytest.mark.parametrize(("architecture", "name"), TENSOR_CORE)
def test_tensor_cores_and_wide_accesses(architecture: str, name: str) -> None:
    operations = instructions(architecture, kernels(architecture)[name].symbol)
    products = TENSOR_CORE[architecture, name]
    warpgroups = any(instruction.startswith("HGMMA") for instruction in products)
    assert {instruction: count(operations, instruction) for instruction in products} == products
    assert count(operations, "LDL") + count(operations, "STL") == 0, "local memory"
    if name.startswith("Adapter"):
        # One counter, of the forward's chunks of dropped samples: who takes which does not show in the result.
        taking = 0 if ", true, " in name else 2
        assert count(operations, "ATOM") == count(operations, "ATOMG.E.ADD") == taking
        staged = warpgroups and "16, float" not in name
        assert count(operations, "STG.E.128") >= 8, "activations are not written 16 bytes at a time"
        if staged:
            assert count(operations, "LDGSTS.E.BYPASS.128") >= 8, "activations do not arrive asynchronously"
        else:
            assert count(operations, "LDG.E.128") >= 8, "activations are not read 16 bytes at a time"
        if warpgroups:
            assert count(operations, "UBLKCP") >= 2, "weights do not arrive by bulk copies"
        else:
            assert count(operations, "LDS.128") >= 64, "weights are not read 16 bytes at a time"
            assert count(operations, "LDGSTS.E.BYPASS.128") >= 4, "weights do not arrive asynchronously"
    else:
        assert count(operations, "ATOM") + count(operations, "RED.") == 0, "atomics"
        assert count(operations, "LDGSTS.E.BYPASS.128") >= 16, "rows do not arrive asynchronously"
        if "float" not in name:
            assert count(operations, "LDSM") == (0 if warpgroups else 24)


@dataclass(frozen=True)
class Device:
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int


H200 = Device(132, 227 * 1024, 228 * 1024, 2048)
A100 = Device(108, 163 * 1024, 164 * 1024, 2048)
L40 = Device(142, 99 * 1024, 100 * 1024, 1536)


@dataclass(frozen=True)
class Plan:
    blocks: int
    shared_bytes: int
    resident: int
    backward_resident: int
    gradient_blocks: int
    gradient_splits: int
    gradient_stages: int
    gradient_shared_bytes: int
    workspace_bytes: int
    prepared_bytes: int


def plan(device: Device, tokens: str, c: int, r: int, residual: str = "", b: int = 180, n: int = 205) -> Plan:
    words = {
        "kind": "plan",
        "tokens": tokens,
        "residual": residual or tokens,
        "B": b,
        "N": n,
        "C": c,
        "r": r,
        "need_tokens": 1,
        "multiprocessors": device.multiprocessors,
        "shared_bytes": device.shared_per_block,
        "seed": 0,
    }
    form = "warpgroups" if device == H200 else "warps"
    values = run(Request(words, [], {"plan": ((10,), torch.int64)}), form)["plan"]
    return Plan(*(int(value) for value in values))


KB = 1024
CONTROL = 512  # bytes in front of the weights
ROWS = 96 * KB  # on Hopper, where the residual stream has the tokens' type, rows are read through shared memory
PLANS = [
    # device, tokens, residual, C, r: blocks, bytes of weights and rows in shared memory, resident,
    # stages of the weights' gradients
    (H200, "bfloat16", "bfloat16", 384, 128, 132, 128 * KB + ROWS, 0, 6),
    (H200, "bfloat16", "bfloat16", 384, 64, 132, 96 * KB + ROWS, 1, 6),
    (H200, "bfloat16", "bfloat16", 768, 64, 132, 64 * KB + ROWS, 0, 6),
    (H200, "bfloat16", "bfloat16", 768, 128, 132, 128 * KB + ROWS, 0, 6),
    (H200, "bfloat16", "float32", 384, 128, 132, 192 * KB, 1, 6),
    (H200, "bfloat16", "float32", 768, 128, 132, 128 * KB, 0, 6),
    (H200, "float32", "float32", 384, 128, 132, 96 * KB, 0, 6),
    (A100, "bfloat16", "bfloat16", 384, 128, 108, 96 * KB, 0, 5),
    (A100, "bfloat16", "bfloat16", 384, 64, 108, 96 * KB, 1, 6),
    (L40, "bfloat16", "bfloat16", 384, 64, 142, 96 * KB, 1, 4),
    (L40, "bfloat16", "bfloat16", 384, 128, 142, 96 * KB, 0, 3),
]


@needs_compiler
@pytest.mark.parametrize(("device", "tokens", "residual", "c", "r", "blocks", "shared", "resident", "stages"), PLANS)
def test_launch_plan(
    device: Device, tokens: str, residual: str, c: int, r: int, blocks: int, shared: int, resident: int, stages: int
) -> None:
    got = plan(device, tokens, c, r, residual)
    assert (got.blocks, got.shared_bytes - CONTROL, got.resident) == (blocks, shared, resident)
    assert got.shared_bytes <= device.shared_per_block
    size = 2 if tokens == "bfloat16" else 4
    width = 64 if r <= 64 else 128
    padding = 0 if size == 2 else 8
    # Of the weights' gradients: at most one block per multiprocessor, and most multiprocessors have one.
    assert 0.8 * device.multiprocessors <= got.gradient_blocks <= device.multiprocessors
    assert got.gradient_stages == stages
    stage_bytes = (128 // size) * (128 + padding + width + padding) * size
    assert got.gradient_shared_bytes == stages * stage_bytes <= device.shared_per_block
    # delta, the gradient as the tokens' type where that is another one, the parts of the gradients, and little else.
    bulk = 180 * 205 * (width + (c if residual != tokens else 0)) * size + got.gradient_blocks * 128 * width * 4
    assert bulk <= got.workspace_bytes <= bulk + 8 * KB
    # The packed weights and the list of samples; what the fake kernel says.
    assert 2 * c * width * size <= got.prepared_bytes <= 2 * c * width * size + 8 * KB
    tokens_like = torch.empty(180, 205, c, dtype=torch.bfloat16 if size == 2 else torch.float32, device="meta")
    assert got.prepared_bytes == _prepared_bytes(tokens_like, r)


@needs_library
@needs_compiler
@pytest.mark.parametrize(
    ("architecture", "device", "name", "c", "r", "warps"),
    [
        ("sm_90a", H200, "AdapterKernel<bf16, bf16, 128, false, none>", 384, 128, 12),
        ("sm_90a", H200, "AdapterKernel<bf16, bf16, 128, true, none>", 768, 128, 12),
        ("sm_90a", H200, "AdapterKernel<float, float, 128, false, none>", 384, 128, 8),
        ("sm_80", A100, "AdapterKernel<bf16, bf16, 128, false, none>", 384, 128, 12),
        ("sm_80", L40, "AdapterKernel<bf16, bf16, 64, false, none>", 384, 64, 12),
    ],
)
def test_occupancy(architecture: str, device: Device, name: str, c: int, r: int, warps: int) -> None:
    """Warps that a multiprocessor holds: by registers, shared memory and threads, whichever is least."""
    kernel = kernels(architecture)[name]
    threads = PINNED[name][0]
    shared = plan(device, "float32" if "float, float" in name else "bfloat16", c, r).shared_bytes + 1024
    per_register_file = 65536 // (-(-kernel.registers // 8) * 8 * threads)
    per_shared_memory = device.shared_per_multiprocessor // shared
    per_threads = device.threads_per_multiprocessor // threads
    assert min(per_register_file, per_shared_memory, per_threads) * threads // 32 == warps
