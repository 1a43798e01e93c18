"""One measuring process: checks contestants, times them in turns, keeps what the result file needs."""

import gc
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Plan, Subject, Workload
from benchmarks.timing import Prepare, Samples, interleave, make_clock


@dataclass
class Outcome:
    """What became of the contestants of one plan: each is in exactly one of ``samples`` and ``failures``."""

    samples: dict[str, Samples] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)


class BenchSession:
    """Measures plans; the workload of the last case and the outcome of the last plan are kept for what follows."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._ceilings: Ceilings | None = None
        self._workload: tuple[Any, Workload] | None = None
        self._checked: dict[str, dict[str, float] | Exception] = {}
        self._outcome: tuple[Any, Outcome] | None = None

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes whose matrix product rate is measured."""
        return ("float32", "bfloat16", "float16") if self.settings.device == "cuda" else ("float32", "bfloat16")

    @property
    def ceilings(self) -> Ceilings:
        """The machine's limits, measured once per process."""
        if self._ceilings is None:
            self._ceilings = measure_ceilings(self.settings.device, self.dtypes, self.settings.effort)
        return self._ceilings

    def workload(self, subject: Subject, case: Any) -> Workload:
        """The workload of a case; the one before is freed first."""
        if self._workload is None or self._workload[0] != (subject.name, case):
            self._workload = self._outcome = None
            self._checked = {}
            gc.collect()
            self._workload = ((subject.name, case), subject.workload(case, self.settings.device))
        return self._workload[1]

    def outcome(self, subject: Subject, plan: Plan) -> tuple[Outcome, bool]:
        """Check and time all contestants of a plan, and whether that happened now (else it was done before)."""
        if self._outcome is not None and self._outcome[0] == (subject.name, plan):
            return self._outcome[1], False
        workload = self.workload(subject, plan.case)
        self._check(workload, plan.contestants)
        outcome = Outcome()
        runners: dict[str, Prepare] = {}
        for name in plan.contestants:
            checked = self._checked[name]
            if isinstance(checked, Exception):
                outcome.failures[name] = checked
            else:
                outcome.errors[name] = checked
                runners[name] = _prepare(workload, name, plan.mode)
        if runners:
            # The workload's device: samplers and evaluation run on the CPU also where there is a GPU.
            clock = make_clock(workload.device, workload.device_only)
            least = workload.least_repeats(plan.mode)
            outcome.samples = interleave(runners, clock, self.settings.effort, least_repeats=least)
        self._outcome = ((subject.name, plan), outcome)
        return outcome, True

    def _check(self, workload: Workload, contestants: tuple[str, ...]) -> None:
        """Compare those contestants of this case with the reference that were not compared before."""
        unchecked = [name for name in contestants if name not in self._checked]
        if not unchecked:
            return
        reference = workload.reference()
        for name in unchecked:
            try:
                self._checked[name] = workload.check(name, reference)
            except Exception as error:  # one contestant that cannot run must not hide the others
                self._checked[name] = error
        del reference
        gc.collect()

    def extra_info(self, subject: Subject, plan: Plan, contestant: str, outcome: Outcome) -> dict[str, Any]:
        """What the result file says about one row besides the samples."""
        samples = outcome.samples[contestant]
        info: dict[str, Any] = {
            "subject": subject.name,
            "case": asdict(plan.case),
            "case_id": plan.case.id,
            "mode": plan.mode,
            "contestant": contestant,
            "setting": self.settings.label,
            "repeats": samples.repeats,
            "page_faults": median(samples.page_faults),
            "errors": outcome.errors[contestant],
            "limit": None,
        }
        workload = self.workload(subject, plan.case)
        limit = workload.limit(plan.mode, self.ceilings)
        if limit is not None:
            seconds = limit.seconds
            if seconds is None:
                peer = limit.bound.removeprefix("contestant ")
                seconds = median(outcome.samples[peer].seconds) if peer in outcome.samples else None
            share = None if seconds is None else seconds / median(samples.seconds)
            info["limit"] = {**asdict(limit), "seconds": seconds, "share": share}
        return info


def _prepare(workload: Workload, contestant: str, mode: str) -> Prepare:
    return lambda index: workload.prepare(contestant, mode, index)
