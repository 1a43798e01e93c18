"""``python -m benchmarks.kernels``: where the device time of one adapter call goes, kernel by kernel.

Inputs rotate and together exceed the last-level cache. A kernel's figure is the profiler's (CUPTI). Our kernels begin
before the one in front has ended and wait for it inside, so figures overlap: what counts is the whole call's time. That
is measured apart, without the profiler, by events around several calls that the host has queued ahead.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.ceilings import DTYPES
from benchmarks.settings import EFFORTS
from benchmarks.subjects.adapter import AdapterCase, AdapterWorkload
from benchmarks.timing import interleave, make_clock

WARMUP, CALLS = 5, 20
SCHEDULE_CYCLES = 1_000_000  # the device waits so long, while the host queues the launches


def kernel_times(workload: AdapterWorkload, contestant: str) -> dict[str, list[float]]:
    """Microseconds by kernel, one entry per call of forward and backward."""
    for index in range(WARMUP):
        workload.prepare(contestant, "both", index)()
    times: dict[str, list[float]] = defaultdict(list)
    for index in range(CALLS):
        call = workload.prepare(contestant, "both", index)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
            torch.cuda._sleep(SCHEDULE_CYCLES)
            call()
            torch.cuda.synchronize()
        counts: dict[str, int] = defaultdict(int)
        for event in sorted(recorded.events(), key=lambda event: event.time_range.start):
            if "spin_kernel" in event.name or event.device_time <= 0:
                continue
            name = short_name(event.name)
            counts[name] += 1
            times[f"{name} ({counts[name]})"].append(event.device_time)
    return times


def call_times(workload: AdapterWorkload, contestant: str) -> dict[str, float]:
    """Median microseconds of device time of a call, by mode."""
    clock = make_clock("cuda", workload.device_only)
    times = {}
    for mode in ("forward", "both"):
        samples = interleave({contestant: partial(workload.prepare, contestant, mode)}, clock, EFFORTS["quick"])
        times[mode] = 1e6 * median(samples[contestant].seconds)
    return times


def short_name(name: str) -> str:
    """A kernel's name without namespaces, return type and argument list."""
    ours = re.search(r"entry<(.*)>\(", name)
    return (ours.group(1).replace("puma::", "") if ours else re.sub(r"^void |\(.*", "", name)).strip()[:60]


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
                calls = call_times(workload, contestant)
                print(f"{case.id} {contestant}: " + ", ".join(f"{mode} {us:.1f} us" for mode, us in calls.items()))
                for name, values in kernel_times(workload, contestant).items():
                    print(f"  {median(values):8.1f} us  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
