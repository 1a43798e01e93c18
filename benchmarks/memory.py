"""Peak memory of a step, each contestant in a process of its own.

On the CPU the process returns every freed tensor to the system at once (low allocator thresholds), so that its resident
memory is what is alive, including scratch memory that torch does not know of. On a GPU torch's allocator counts.

Of the adapter, what a forward and backward pass needs beyond its inputs; of a training step, everything: weights,
optimizer state, gradients, activations, the batch; of a sampler, everything from the labels to its first batch.
"""

import argparse
import gc
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.process import reset_peak, resident, run_apart
from benchmarks.settings import EFFORTS, MALLOC_VARIABLES, Settings, malloc_environment
from benchmarks.subjects import load_subject
from benchmarks.subjects.workload import Case, Workload

RETURN_AT_ONCE = 1 << 16  # bytes: larger blocks go back to the system when they are freed
STEPS = 2


@dataclass(frozen=True)
class MemoryPlan:
    """Peak memory of one contestant: of a step beyond its inputs, or of everything if ``whole``."""

    subject: str
    case: Case
    mode: str
    contestant: str
    whole: bool

    @property
    def id(self) -> str:
        return f"{self.subject}-{self.case.id}-{self.mode}-{self.contestant}"


def memory_plans(settings: Settings) -> list[MemoryPlan]:
    """The adapter at the paper's size, the training step and the samplers; once per run, whatever the allocator's
    setting."""
    from benchmarks.subjects import sampling
    from benchmarks.subjects.adapter import AdapterCase
    from benchmarks.subjects.training_step import StepCase

    if settings.device == "cpu" and settings.malloc == "raised":
        return []
    first, second = ("float32", "bfloat16") if settings.device == "cpu" else ("bfloat16", "float32")
    if settings.smoke:
        rows: list[tuple[str, Case, tuple[str, ...]]] = [("adapter", AdapterCase(3, 5, 16, 4), ("ours", "authors"))]
    else:
        steps = [StepCase(batch=8), StepCase(batch=32)]
        if settings.device == "cuda":
            steps = [StepCase(batch=180, precision="bfloat16")]
        rows = [("adapter", AdapterCase(dtype=first), ("ours", "authors", "fixed", "indexed"))]
        rows.append(("training_step", steps[0], ("ours", "authors", "full_fine_tuning")))
        if settings.full:
            rows.append(("adapter", AdapterCase(dtype=second), ("ours", "authors")))
            rows.append(("adapter", AdapterCase(dtype=first, drop=0.0), ("ours", "authors")))
            rows += [("training_step", step, ("ours", "full_fine_tuning")) for step in steps[1:]]
    if settings.device == "cpu":
        rows.append(("sampling", sampling.million_case(settings), sampling.CONTESTANTS))
    modes = {"adapter": ("both", False), "training_step": ("step", True), "sampling": ("first_batch", True)}
    return [
        MemoryPlan(subject, case, modes[subject][0], name, modes[subject][1])
        for subject, case, names in rows
        for name in names
    ]


def measure(plan: MemoryPlan, device: str) -> int:
    """Peak bytes, measured in a fresh process.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    environment = malloc_environment("default")
    environment.update(dict.fromkeys(MALLOC_VARIABLES, str(RETURN_AT_ONCE)))
    arguments = [plan.subject, json.dumps(asdict(plan.case)), plan.mode, plan.contestant, device]
    arguments += ["--whole"] if plan.whole else []
    return int(run_apart(plan.id, "benchmarks.memory", arguments, environment)["peak_bytes"])


def peak_bytes(subject_name: str, case: dict[str, Any], mode: str, contestant: str, device: str, whole: bool) -> int:
    """Peak bytes of ``STEPS`` steps in this process, which should have done nothing else before."""
    subject = load_subject(subject_name)
    # A tiny run first: libraries allocate on first use.
    tiny = Settings(EFFORTS["smoke"], device, "default", compiled=False)
    _run(subject.workload(subject.plans(tiny)[0].case, device), subject.plans(tiny)[0].mode, contestant)
    gc.collect()
    baseline = _current(device)
    workload = subject.workload(subject.case(**case), device)
    workload.prepare(contestant, mode, 0)  # makes the inputs; its own results are dropped
    gc.collect()
    if not whole:
        baseline = _current(device)
    _reset_peak(device)
    _run(workload, mode, contestant)
    return _peak(device) - baseline


def _run(workload: Workload, mode: str, contestant: str) -> None:
    for _ in range(STEPS):
        workload.prepare(contestant, mode, 0)()  # a step has one batch; the others are the benchmark's


def _current(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else resident("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Peak memory of one contestant, in this process; prints JSON.")
    for name in ("subject", "case", "mode", "contestant", "device"):
        parser.add_argument(name)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    peak = peak_bytes(given.subject, json.loads(given.case), given.mode, given.contestant, given.device, given.whole)
    print(json.dumps({"peak_bytes": peak}))
