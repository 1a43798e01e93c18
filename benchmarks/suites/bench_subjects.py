"""The subjects: the contestants of each plan, checked and timed in turns."""

from statistics import median
from typing import Any

import pytest

from benchmarks.replay import CLOCK, replay
from benchmarks.session import BenchSession
from benchmarks.subjects import load_subject
from benchmarks.subjects.workload import Plan


@pytest.mark.benchmark(timer=CLOCK)
def test_subject(
    subject: str, plan: Plan | Exception, contestant: str, bench_session: BenchSession, benchmark: Any
) -> None:
    if isinstance(plan, Exception):
        raise plan
    loaded = load_subject(subject)
    outcome, fresh = bench_session.outcome(loaded, plan)
    title = f"{subject} {plan.case.id} {plan.mode}"
    if fresh:
        medians = {name: median(samples.seconds) for name, samples in outcome.samples.items()}
        print(_progress(title, medians), flush=True)
    if contestant in outcome.failures:
        raise outcome.failures[contestant]
    benchmark.group = f"{title} {bench_session.settings.label}"
    benchmark.extra_info.update(bench_session.extra_info(loaded, plan, contestant, outcome))
    replay(benchmark, outcome.samples[contestant].seconds)


def _progress(title: str, medians: dict[str, float]) -> str:
    ours = medians.get("ours")
    entries = []
    for name, seconds in medians.items():
        ratio = f" ({seconds / ours:.2f}x)" if ours and name != "ours" else ""
        entries.append(f"{name} {seconds * 1e3:.4g} ms{ratio}")
    return f"{title}: {', '.join(entries)}"
