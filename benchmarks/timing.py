"""Contestants timed in turns: one sample of each per round, in a random order, so that drift hits all alike."""

import gc
import math
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from benchmarks.settings import Effort

Call = Callable[[], object]
# Makes the call number `index` ready to be timed: chooses its inputs and does everything that is not to be measured.
Prepare = Callable[[int], Call]

MAX_REPEATS = 2000  # calls per sample on the CPU
MAX_QUEUED_CALLS = 10  # calls per sample on a GPU: the driver queues about a thousand launches before the host blocks
MAX_ATTEMPTS = 8


@dataclass
class Samples:
    """What was measured of one contestant.

    Attributes:
        seconds: one entry per round, per call.
        repeats: calls per sample, the same for all that took turns.
        page_faults: minor faults of the process per call, one entry per round; what the allocator's settings change.
    """

    seconds: list[float] = field(default_factory=list)
    repeats: int = 1
    page_faults: list[float] = field(default_factory=list)


class Clock(Protocol):
    """Times calls; the preparation is not part of it."""

    max_repeats: int

    def sample(self, prepare: Callable[[], list[Call]]) -> float:
        """Seconds that the prepared calls take together."""


class CpuClock:
    """Wall-clock time."""

    max_repeats = MAX_REPEATS

    def sample(self, prepare: Callable[[], list[Call]]) -> float:
        calls = prepare()
        start = time.perf_counter()
        for call in calls:
            call()  # its result is freed here, inside the measured time, as in training
        return time.perf_counter() - start


class CudaClock:
    """Time between two CUDA events.

    Args:
        device_only: let the device wait until all calls are queued, so that the host's share does not show. Without it
            the figure is what a training loop sees: the slower of host and device.
    """

    def __init__(self, device_only: bool) -> None:
        self.device_only = device_only
        self.max_repeats = MAX_QUEUED_CALLS
        self.cycles = 2_000_000

    def sample(self, prepare: Callable[[], list[Call]]) -> float:
        for _ in range(MAX_ATTEMPTS):
            calls = prepare()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            if self.device_only:
                torch.cuda._sleep(self.cycles)
            start.record()
            for call in calls:
                call()
            end.record()
            host_was_ahead = not start.query()
            torch.cuda.synchronize()
            if host_was_ahead or not self.device_only:
                return start.elapsed_time(end) / 1e3
            self.cycles *= 2
        raise RuntimeError(
            f"the host could not queue {len(calls)} calls while the device waited {self.cycles:.0e} cycles: "
            "one of the calls synchronises with the device"
        )


def make_clock(device: str, device_only: bool) -> Clock:
    """The clock for a device."""
    return CudaClock(device_only) if device == "cuda" else CpuClock()


def interleave(
    contestants: Mapping[str, Prepare], clock: Clock, effort: Effort, least_repeats: int = 1
) -> dict[str, Samples]:
    """Time all contestants, one sample each per round, of at least ``least_repeats`` calls.

    Rounds are as many as ``effort.budget_s`` buys, within its bounds; short calls are repeated within a sample until
    everybody's lasts ``effort.min_sample_s``. All are repeated equally often: the first call of a sample finds the
    caches as another contestant left them, and must weigh the same for all. Garbage is collected between rounds, never
    inside.

    Raises:
        ValueError: no contestants.
    """
    if not contestants:
        raise ValueError("there are no contestants to time")
    order = random.Random(0)
    runners = {name: _Runner(prepare, clock) for name, prepare in contestants.items()}
    for _ in range(effort.warmup):
        for runner in runners.values():
            runner.sample()
    repeats = max(least_repeats, *(runner.repeats_for(effort.min_sample_s) for runner in runners.values()))
    for runner in runners.values():
        runner.samples = Samples(repeats=repeats)

    rounds, deadline = 0, time.perf_counter() + effort.budget_s
    with _quiet_collector():
        while rounds < effort.min_rounds or (rounds < effort.max_rounds and time.perf_counter() < deadline):
            for name in order.sample(list(runners), len(runners)):
                runners[name].sample()
            rounds += 1
            gc.collect()
    return {name: runner.samples for name, runner in runners.items()}


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """No automatic garbage collection; explicit ones do not look at what is alive now (all imported modules)."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class _Runner:
    """One contestant on its way through the rounds."""

    def __init__(self, prepare: Prepare, clock: Clock) -> None:
        self.prepare = prepare
        self.clock = clock
        self.samples = Samples()
        self._index = 0

    def sample(self) -> None:
        faults = 0

        def ready() -> list[Call]:
            nonlocal faults
            calls = [self.prepare(self._index + offset) for offset in range(self.samples.repeats)]
            self._index += self.samples.repeats
            faults = _page_faults()
            return calls

        seconds = self.clock.sample(ready)
        self.samples.seconds.append(seconds / self.samples.repeats)
        self.samples.page_faults.append((_page_faults() - faults) / self.samples.repeats)

    def repeats_for(self, min_sample_s: float) -> int:
        """How many calls a sample of this length takes, going by the fastest warm-up sample."""
        fastest = max(min(self.samples.seconds), 1e-9)
        return max(1, min(self.clock.max_repeats, math.ceil(min_sample_s / fastest)))


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
