"""The samplers."""

import pytest

from benchmarks.replay import CLOCK
from benchmarks.session import Record
from benchmarks.subjects.workload import Plan

SUBJECT = "sampling"


@pytest.mark.benchmark(timer=CLOCK)
def test_sampling(plan: Plan, contestant: str, record: Record) -> None:
    record(plan, contestant)
