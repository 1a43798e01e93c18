"""What the machine can do: copy bandwidth and matrix product rates."""

from typing import Any

import pytest

from benchmarks.replay import CLOCK, replay
from benchmarks.session import BenchSession


@pytest.mark.benchmark(timer=CLOCK)
def test_ceilings(ceiling: str, bench_session: BenchSession, benchmark: Any) -> None:
    ceilings, setting = bench_session.ceilings, bench_session.settings.label
    benchmark.group = f"ceilings {setting}"
    benchmark.extra_info.update(
        subject="ceilings", case={}, case_id=ceiling, mode="call", contestant=ceiling, setting=setting,
        work=ceilings.work[ceiling],
    )  # fmt: skip
    replay(benchmark, ceilings.samples[ceiling].seconds)
