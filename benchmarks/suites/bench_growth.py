"""Time and memory of the evaluation from ten thousand items to the paper's full scale."""

from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

import pytest

from benchmarks.growth import MODE, Growth, growth_plans, measure_apart, measure_in_turns
from benchmarks.memory import MemoryPlan
from benchmarks.process import measurable
from benchmarks.replay import CLOCK, replay
from benchmarks.session import BenchSession
from benchmarks.subjects.evaluation import EvaluationCase


@pytest.fixture(scope="module")
def growth_runs() -> dict[EvaluationCase, dict[str, list[Growth]]]:
    """What was measured, by case and contestant; all contestants of a case at once."""
    return {}


@pytest.mark.benchmark(timer=CLOCK)
def test_growth(
    growth_plan: tuple[EvaluationCase, str],
    growth_runs: dict[EvaluationCase, dict[str, list[Growth]]],
    bench_session: BenchSession,
    remember_memory: Callable[[MemoryPlan, int], None],
    benchmark: Any,
) -> None:
    if not measurable():
        pytest.skip("this system does not tell a process's peak memory (no /proc/self/clear_refs)")
    case, contestant = growth_plan
    if case not in growth_runs:
        others = [name for other, name in growth_plans(bench_session.settings) if other == case]
        growth_runs[case] = measure_in_turns(case, others, measure_apart)
    runs = growth_runs[case][contestant]
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
