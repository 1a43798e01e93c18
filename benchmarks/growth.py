"""Time and memory of the evaluation as it grows, each size and contestant in processes of its own.

``python -m benchmarks.growth ITEMS`` evaluates ITEMS embeddings with the paper's class sizes (138000 for the paper's
full scale), ``--contestant pml`` with pytorch-metric-learning's calculator instead; prints JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.agreement import DisagreementError
from benchmarks.process import reset_peak, resident, run_apart
from benchmarks.settings import Settings
from benchmarks.subjects.evaluation import PAPER, EvaluationCase, EvaluationWorkload
from puma_plugin.experiments.reporting.machine import memory_gib

SIZES = {"smoke": (500,), "quick": (10_000, 20_000), "full": (10_000, 20_000, 40_000, 80_000, 138_000)}
# Bytes of pytorch-metric-learning's calculator per class and item, measured.
PML_BYTES = 10
MODE = "once"
SMALLEST = 100  # items; with fewer hardly a class has two, and there is nothing to find


@dataclass(frozen=True)
class Growth:
    """What one evaluation cost.

    Attributes:
        seconds: of the clock.
        cpu_seconds: of all threads together; hardly disturbed by other processes.
        peak_bytes: above what was there before, embeddings and labels included.
        metrics: of the joint gallery.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    metrics: dict[str, float]


def growth_plans(settings: Settings) -> list[tuple[EvaluationCase, str]]:
    """Sizes and contestants; pml where its memory fits into half of this machine's."""
    if settings.malloc == "raised":
        return []
    plans = []
    for items in SIZES[settings.effort.name]:
        case = EvaluationCase(items, per_class=0)
        plans.append((case, "ours"))
        if pml_bytes(items) < (memory_gib() or 0) * 2**30 / 2:
            plans.append((case, "pml"))
    return plans


def pml_bytes(items: int) -> int:
    """About what pml's calculator takes for so many items with the paper's classes."""
    classes, images = (sum(sizes) for sizes in zip(*PAPER, strict=True))
    return round(PML_BYTES * items * classes * min(items / images, 1.0))


def measure_in_turns(
    case: EvaluationCase, contestants: Sequence[str], measure: Callable[[EvaluationCase, str], Growth]
) -> dict[str, list[Growth]]:
    """Every contestant as often as `repeats` says, one after the other, so that drift of the machine hits all alike.

    Raises:
        DisagreementError: one finds other metrics than the first.
    """
    found: dict[str, list[Growth]] = {name: [] for name in contestants}
    for _ in range(repeats(case.items)):
        for name in contestants:
            found[name].append(measure(case, name))
    expected = found[contestants[0]][0].metrics
    for name, runs in found.items():
        if any(abs(run.metrics[metric] - value) > 1e-12 for run in runs for metric, value in expected.items()):
            raise DisagreementError(f"{case.id}: {name} finds {runs[0].metrics}, {contestants[0]} {expected}")
    return found


def repeats(items: int) -> int:
    """How often a size is measured: short runs several times."""
    return max(1, min(5, 100_000 // items))


def measure_apart(case: EvaluationCase, contestant: str) -> Growth:
    """One evaluation in a fresh process.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    arguments = [str(case.items), "--contestant", contestant]
    found = run_apart(f"{case.id}, {contestant}", "benchmarks.growth", arguments)
    metrics = {name: value for name, value in found.items() if name.startswith("unified")}
    return Growth(found["seconds"], found["cpu_seconds"], found["peak_bytes"], metrics)


def measure_here(items: int, contestant: str) -> dict[str, float]:
    """Cost and figures of one evaluation in this process."""
    # A tiny one first: libraries allocate and start their threads on first use.
    EvaluationWorkload(EvaluationCase(200, per_class=5), "cpu").metrics(contestant)
    workload = EvaluationWorkload(EvaluationCase(items, per_class=0), "cpu")
    reset_peak()
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    metrics = workload.metrics(contestant)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": resident("VmHWM") - before,
        **{name: value for name, value in metrics.items() if name.startswith("unified")},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("items", type=int, help=f"how many, at least {SMALLEST}")
    parser.add_argument("--contestant", choices=["ours", "pml"], default="ours")
    given = parser.parse_args()
    if given.items < SMALLEST:
        parser.error(f"items must be at least {SMALLEST}, got {given.items}")
    print(json.dumps(measure_here(given.items, given.contestant)))
