"""The prompt matching."""

import pytest

from benchmarks.replay import CLOCK
from benchmarks.session import Record
from benchmarks.subjects.workload import Plan

SUBJECT = "prompts"


@pytest.mark.benchmark(timer=CLOCK)
def test_prompts(plan: Plan, contestant: str, record: Record) -> None:
    record(plan, contestant)
