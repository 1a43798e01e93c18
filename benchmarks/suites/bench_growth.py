"""Time and memory of the evaluation from ten thousand items to the paper's full scale."""

from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

import pytest

from benchmarks.growth import MODE, measure_apart, repeats
from benchmarks.memory import MemoryPlan, measurable
from benchmarks.replay import CLOCK, replay
from benchmarks.session import BenchSession
from benchmarks.subjects.evaluation import EvaluationCase


@pytest.mark.benchmark(timer=CLOCK)
def test_growth(
    growth_plan: tuple[EvaluationCase, str],
    bench_session: BenchSession,
    remember_memory: Callable[[MemoryPlan, int], None],
    benchmark: Any,
) -> None:
    if not measurable():
        pytest.skip("this system does not tell a process's peak memory (no /proc/self/clear_refs)")
    case, contestant = growth_plan
    runs = [measure_apart(case, contestant) for _ in range(repeats(case.items))]
    remember_memory(MemoryPlan("evaluation", case, MODE, contestant, False), max(run.peak_bytes for run in runs))
    seconds = [run.seconds for run in runs]
    cpu_seconds = median(run.cpu_seconds for run in runs)
    print(f"growth {case.id} {contestant}: {median(seconds):.1f} s, {cpu_seconds:.1f} CPU s", flush=True)
    benchmark.group = f"evaluation {case.id} {MODE}"
    benchmark.extra_info.update(
        subject="evaluation", case=asdict(case), case_id=case.id, mode=MODE, contestant=contestant,
        setting=bench_session.settings.label, cpu_seconds=cpu_seconds, limit=None,
    )  # fmt: skip
    replay(benchmark, seconds)
