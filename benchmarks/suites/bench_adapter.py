"""The stochastic adapter."""

import pytest

from benchmarks.replay import CLOCK
from benchmarks.session import Record
from benchmarks.subjects.workload import Plan

SUBJECT = "adapter"


@pytest.mark.benchmark(timer=CLOCK)
def test_adapter(plan: Plan, contestant: str, record: Record) -> None:
    record(plan, contestant)
