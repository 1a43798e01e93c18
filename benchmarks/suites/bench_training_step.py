"""The whole training step."""

import pytest

from benchmarks.replay import CLOCK
from benchmarks.session import Record
from benchmarks.subjects.workload import Plan

SUBJECT = "training_step"


@pytest.mark.benchmark(timer=CLOCK)
def test_training_step(plan: Plan, contestant: str, record: Record) -> None:
    record(plan, contestant)
