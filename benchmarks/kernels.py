"""``python -m benchmarks.kernels``: the device time of every CUDA kernel of one call, forward and backward.

Inputs rotate and together exceed the last-level cache. The figures are the profiler's (CUPTI): the time of a kernel
alone, without launch gaps. Beside them the span from the first kernel's start to the last one's end.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.ceilings import DTYPES
from benchmarks.subjects.adapter import AdapterCase, AdapterWorkload

WARMUP, CALLS = 5, 20


def kernel_times(workload: AdapterWorkload, contestant: str) -> tuple[dict[str, list[float]], list[float]]:
    """Microseconds per call by kernel, and of the whole call, over `CALLS` calls of forward and backward."""
    for index in range(WARMUP):
        workload.prepare(contestant, "both", index)()
    times: dict[str, list[float]] = defaultdict(list)
    spans = []
    for index in range(CALLS):
        call = workload.prepare(contestant, "both", index)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            torch.cuda._sleep(1_000_000)  # all launches are queued before the first kernel starts
            call()
            torch.cuda.synchronize()
        found = sorted(recorded.events(), key=lambda event: event.time_range.start)
        found = [event for event in found if "spin_kernel" not in event.name and event.device_time > 0]
        counts: dict[str, int] = defaultdict(int)
        for event in found:
            name = short_name(event.name)
            counts[name] += 1
            times[f"{name} ({counts[name]})"].append(event.device_time)
        spans.append(found[-1].time_range.end - found[0].time_range.start)
    return times, spans


def short_name(name: str) -> str:
    """A kernel's name without namespaces and argument lists."""
    match = re.search(r"entry<(.*)>\(", name)
    return (match.group(1) if match else re.sub(r"\(.*", "", name)).replace("puma::", "").strip()[:60]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--contestants", nargs="+", default=["ours"])
    parser.add_argument("--batch", type=int, default=180)
    parser.add_argument("--width", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--adapter-dim", type=int, default=128)
    parser.add_argument("--drop", type=float, nargs="+", default=[0.5, 0.0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--residual-dtype", choices=list(DTYPES), default=None)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    for width in given.width:
        for drop in given.drop:
            case = AdapterCase(
                given.batch,
                width=width,
                adapter_dim=given.adapter_dim,
                drop=drop,
                dtype=given.dtype,
                residual_dtype=given.residual_dtype or "",
            )
            workload = AdapterWorkload(case, "cuda")
            for contestant in given.contestants:
                times, spans = kernel_times(workload, contestant)
                print(f"{case.id} {contestant}: {median(spans):.1f} us from first to last")
                for name, values in times.items():
                    print(f"  {median(values):8.1f} us  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
