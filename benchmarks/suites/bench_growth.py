"""Time and memory of the evaluation from ten thousand items to the paper's full scale."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.growth import MODE, measure_apart
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
    found = measure_apart(case, contestant)
    remember_memory(MemoryPlan("evaluation", case, MODE, contestant, False), found.peak_bytes)
    print(f"growth {case.id} {contestant}: {found.seconds:.1f} s, {found.cpu_seconds:.1f} CPU s", flush=True)
    benchmark.group = f"evaluation {case.id} {MODE}"
    benchmark.extra_info.update(
        subject="evaluation", case=asdict(case), case_id=case.id, mode=MODE, contestant=contestant,
        setting=bench_session.settings.label, cpu_seconds=found.cpu_seconds, limit=None,
    )  # fmt: skip
    replay(benchmark, [found.seconds])
