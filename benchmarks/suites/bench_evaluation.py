"""The retrieval evaluation."""

import pytest

from benchmarks.replay import CLOCK
from benchmarks.session import Record
from benchmarks.subjects.workload import Plan

SUBJECT = "evaluation"


@pytest.mark.benchmark(timer=CLOCK)
def test_evaluation(plan: Plan, contestant: str, record: Record) -> None:
    record(plan, contestant)
