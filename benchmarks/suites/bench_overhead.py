"""The host overhead of a call."""

import pytest

from benchmarks.replay import CLOCK
from benchmarks.session import Record
from benchmarks.subjects.workload import Plan

SUBJECT = "overhead"


@pytest.mark.benchmark(timer=CLOCK)
def test_overhead(plan: Plan, contestant: str, record: Record) -> None:
    record(plan, contestant)
