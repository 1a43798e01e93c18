"""The frozen branches of a block."""

import pytest

from benchmarks.replay import CLOCK
from benchmarks.session import Record
from benchmarks.subjects.workload import Plan

SUBJECT = "branches"


@pytest.mark.benchmark(timer=CLOCK)
def test_branches(plan: Plan, contestant: str, record: Record) -> None:
    record(plan, contestant)
