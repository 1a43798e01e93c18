"""Options, fixtures and the extra fields of the result file; see `benchmarks.run` for the command."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.ceilings import ceiling_names
from benchmarks.machine import commit_of_all, machine_info
from benchmarks.memory import MemoryPlan, memory_plans
from benchmarks.session import BenchSession
from benchmarks.settings import EFFORTS, SUBJECTS, Settings, choose_device, malloc_setting
from benchmarks.subjects import load_subject
from puma_plugin.experiments.reporting.machine import commit

SESSION: pytest.StashKey[BenchSession] = pytest.StashKey()
MEMORY: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
LOAD: pytest.StashKey[float] = pytest.StashKey()
FAILURES: pytest.StashKey[list[dict[str, str]]] = pytest.StashKey()
MACHINE: pytest.StashKey[dict[str, Any]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("puma_plugin benchmarks")
    group.addoption("--subject", action="append", choices=list(SUBJECTS), help="one of them (default: all)")
    group.addoption("--effort", choices=list(EFFORTS), default="quick", help="how much is measured (default: quick)")
    group.addoption("--bench-device", choices=["auto", "cpu", "cuda"], default="auto")
    group.addoption("--no-compiled", action="store_true", help="leave out the torch.compile contestants")


def pytest_configure(config: pytest.Config) -> None:
    settings = Settings(
        EFFORTS[config.getoption("--effort")],
        choose_device(config.getoption("--bench-device")),
        malloc_setting(),
        not config.getoption("--no-compiled"),
    )
    config.stash[SESSION] = BenchSession(settings)
    config.stash[MEMORY] = []
    config.stash[FAILURES] = []
    config.stash[LOAD] = os.getloadavg()[0]
    config.stash[MACHINE] = machine_info(settings.device)  # now: the code that will be measured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Keep what failed: a row that is not in the file should not look as if nobody had wanted it."""
    report = yield
    if report.failed and call.excinfo is not None:
        reason = (str(call.excinfo.value).splitlines() or [""])[0]
        item.config.stash[FAILURES].append({"test": item.name, "error": f"{call.excinfo.typename}: {reason}"})
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Keep suites that could not even be started."""
    report = yield
    if report.failed:
        lines = str(report.longrepr).splitlines()
        collector.config.stash[FAILURES].append({"test": collector.name, "error": lines[-1].removeprefix("E").strip()})
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = metafunc.config.stash[SESSION]
    if "subject" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--subject") or SUBJECTS
        by_subject = {subject: _rows(subject, session.settings) for subject in chosen}
        _say_what_is_empty(by_subject, session.settings)
        rows = [row for found in by_subject.values() for row in found]
        metafunc.parametrize(("subject", "plan", "contestant"), rows)
    if "ceiling" in metafunc.fixturenames:
        metafunc.parametrize("ceiling", ceiling_names(session.settings.device, session.dtypes))
    if "growth_plan" in metafunc.fixturenames:
        from benchmarks.growth import growth_plans  # needs pml; a suite that is broken does not stop the others

        growing = growth_plans(session.settings)
        _say_what_is_empty({"growth": growing}, session.settings)
        metafunc.parametrize("growth_plan", growing, ids=[f"{case.id}-{name}" for case, name in growing])
    if "memory_plan" in metafunc.fixturenames:
        plans = memory_plans(session.settings)
        _say_what_is_empty({"memory": plans}, session.settings)
        metafunc.parametrize("memory_plan", plans, ids=[plan.id for plan in plans])


def _say_what_is_empty(found: Mapping[str, Sequence[Any]], settings: Settings) -> None:
    """A suite that somebody asked for should not be missed in silence."""
    for name, rows in found.items():
        if not rows:
            print(f"{name}: nothing to measure with effort {settings.effort.name} ({settings.label})", flush=True)


def _rows(subject: str, settings: Settings) -> list[Any]:
    """A subject's plans by contestant; the error of one that is broken, which does not stop the others."""
    try:
        plans = load_subject(subject).plans(settings)
    except Exception as error:
        return [pytest.param(subject, error, "", id=subject)]
    return [
        pytest.param(subject, plan, name, id=f"{subject}-{plan.case.id}-{plan.mode}-{settings.label}-{name}")
        for plan in plans
        for name in plan.contestants
    ]


@pytest.fixture
def bench_session(request: pytest.FixtureRequest) -> BenchSession:
    return request.config.stash[SESSION]


@pytest.fixture
def remember_memory(request: pytest.FixtureRequest) -> Callable[[MemoryPlan, int], None]:
    """Put a peak into the result file."""

    def remember(plan: MemoryPlan, peak: int) -> None:
        row = {"subject": plan.subject, "case": asdict(plan.case), "case_id": plan.case.id, "mode": plan.mode}
        request.config.stash[MEMORY].append(
            {**row, "contestant": plan.contestant, "whole": plan.whole, "peak_bytes": peak}
        )
        print(f"memory {plan.id}: {peak / 2**20:.1f} MiB", flush=True)

    return remember


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    found = config.stash[MACHINE]
    return {**found, "commit": commit_of_all([found["commit"], commit()])}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    settings = config.stash[SESSION].settings
    output_json["settings"] = [{**asdict(settings), "load_average_before": config.stash[LOAD]}]
    output_json["memory"] = config.stash[MEMORY]
    output_json["failures"] = config.stash[FAILURES]
    ceilings = config.stash[SESSION].ceilings
    output_json["ceilings"] = [
        {
            "setting": settings.label,
            "copy_bytes_per_s": ceilings.copy_bytes_per_s,
            "flops_per_s": ceilings.flops_per_s,
        }
    ]
