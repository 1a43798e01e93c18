"""What this machine can do at best, measured in the same run: memory bandwidth and matrix product rate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.machine import last_level_cache_bytes
from benchmarks.settings import Effort
from benchmarks.timing import Call, Samples, interleave, make_clock

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Ceilings:
    """Limits of the machine: the fastest samples, so that no share of a limit is flattered.

    Attributes:
        copy_bytes_per_s: bytes read plus bytes written by a large copy, per second.
        flops_per_s: rate of a large square matrix product, by dtype; of several ways to compute it the fastest.
        samples: what both were computed from, by the names of ``ceiling_names``.
        work: bytes or FLOP of one call, by the same names.
    """

    copy_bytes_per_s: float
    flops_per_s: dict[str, float]
    samples: dict[str, Samples]
    work: dict[str, float]

    def floor_s(self, read_and_written: float, flops: float, dtype: str) -> tuple[float, str]:
        """The least time for this much work (roofline), and which limit it is: "bandwidth" or "matrix product"."""
        memory, compute = read_and_written / self.copy_bytes_per_s, flops / self.flops_per_s[dtype]
        return (memory, "bandwidth") if memory >= compute else (compute, "matrix product")


def ceiling_names(device: str, dtypes: tuple[str, ...]) -> list[str]:
    """What is timed: "copy", and for each dtype one or two matrix products."""
    return ["copy", *(f"{way}_{name}" for name in dtypes for way in product_ways(device))]


def product_ways(device: str) -> tuple[str, ...]:
    """The ways in which torch computes a matrix product here.

    On a CPU its BLAS (MKL) leaves half of what AMD's processors can do in float32; a convolution of single pixels is
    the same product through oneDNN.
    """
    return ("matmul",) if device == "cuda" else ("matmul", "convolution")


def measure_ceilings(device: str, dtypes: tuple[str, ...], effort: Effort) -> Ceilings:
    """Copy and matrix products, timed in turns like everything else."""
    smoke = effort.name == "smoke"
    copy_bytes = 1 << 18 if smoke else max(1 << 28, 4 * last_level_cache_bytes(device))
    side = 64 if smoke else (8192 if device == "cuda" else 2048)
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.zeros_like(source)
    work: dict[str, float] = {"copy": 2.0 * source.numel() * source.element_size()}

    def copy(_: int) -> Call:
        return lambda: target.copy_(source)

    contestants = {"copy": copy}
    for name in dtypes:
        left, right, product = (torch.randn(side, side, device=device).to(DTYPES[name]) for _ in range(3))

        def multiply(_: int, left: Tensor = left, right: Tensor = right, product: Tensor = product) -> Call:
            return lambda: torch.mm(left, right, out=product)

        # Rows as pixels of an image, whose channels lie side by side.
        image = left.view(1, 1, side, side).permute(0, 3, 1, 2)
        kernels = right[:, :, None, None].contiguous(memory_format=torch.channels_last)

        def convolve(_: int, image: Tensor = image, kernels: Tensor = kernels) -> Call:
            return lambda: torch.nn.functional.conv2d(image, kernels)

        for way in product_ways(device):
            contestants[f"{way}_{name}"] = multiply if way == "matmul" else convolve
            work[f"{way}_{name}"] = 2.0 * side**3
    samples = interleave(contestants, make_clock(device, device_only=True), effort)
    rates = {name: work[name] / min(entry.seconds) for name, entry in samples.items()}
    fastest = {name: max(rates[f"{way}_{name}"] for way in product_ways(device)) for name in dtypes}
    return Ceilings(rates["copy"], fastest, samples, work)
