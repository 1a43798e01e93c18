"""Peak memory of a step, each contestant in a process of its own."""

from collections.abc import Callable

import pytest

from benchmarks.memory import MemoryPlan, measure
from benchmarks.process import measurable
from benchmarks.session import BenchSession


def test_memory(
    memory_plan: MemoryPlan, bench_session: BenchSession, remember_memory: Callable[[MemoryPlan, int], None]
) -> None:
    if bench_session.settings.device == "cpu" and not measurable():
        pytest.skip("this system does not tell a process's peak memory (no /proc/self/clear_refs)")
    peak = measure(memory_plan, bench_session.settings.device)
    assert peak > 0
    remember_memory(memory_plan, peak)
