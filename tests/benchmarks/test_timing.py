"""Samples are taken in turns, without the preparation, and reach pytest-benchmark unchanged."""

import time
from collections import Counter
from statistics import median

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.replay import ReplayClock
from benchmarks.settings import EFFORTS, MALLOC_VARIABLES, Effort, malloc_environment, malloc_setting
from benchmarks.subjects.adapter import AdapterCase, AdapterWorkload
from benchmarks.subjects.branches import BranchCase, BranchWorkload
from benchmarks.subjects.prompts import PromptCase, PromptWorkload
from benchmarks.timing import Call, CpuClock, Prepare, interleave


def test_each_round_times_every_contestant_once_in_changing_order() -> None:
    log: list[str] = []

    def contestant(name: str) -> Prepare:
        def prepare(index: int) -> Call:
            return lambda: log.append(f"{name}{index}")

        return prepare

    effort = Effort("test", 0.0, 8, 8, 2, 0.0)
    samples = interleave({name: contestant(name) for name in "abc"}, CpuClock(), effort)
    assert {name: len(entry.seconds) for name, entry in samples.items()} == {"a": 8, "b": 8, "c": 8}
    rounds = [log[start : start + 3] for start in range(6, len(log), 3)]  # after two warm-up calls each
    assert len(rounds) == 8
    orders = Counter("".join(call[0] for call in entry) for entry in rounds)
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) > 1
    # Inputs rotate: the calls of one contestant are numbered without gaps, warm-up included.
    assert [call for call in log if call.startswith("a")] == [f"a{index}" for index in range(10)]


class Watch:
    """Time that passes only when told to, in place of the machine's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def contestant(self, to_prepare: float, to_run: float) -> Prepare:
        """Takes so long to prepare and so long to run."""

        def prepare(_: int) -> Call:
            self.pass_time(to_prepare)
            return lambda: self.pass_time(to_run)

        return prepare

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


def test_preparation_is_not_timed_and_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    contestants = {"short": watch.contestant(0.003, 0.001), "long": watch.contestant(0.0, 0.05)}
    samples = interleave(contestants, CpuClock(), Effort("test", 0.0, 3, 3, 1, 0.0095))
    assert samples["short"].repeats == 10
    assert samples["short"].seconds == pytest.approx([0.001] * 3)
    assert samples["long"].repeats == 10  # equally often
    assert samples["long"].seconds == pytest.approx([0.05] * 3)


def test_the_first_call_of_a_sample_weighs_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """After another contestant a call takes 1 ms more, whosever it is: what the other left in the caches."""
    watch = Watch(monkeypatch)
    before: list[str] = []

    def contestant(name: str, seconds: float) -> Prepare:
        def call() -> None:
            watch.pass_time(seconds + (0.001 if before[-1:] != [name] else 0))
            before.append(name)

        return lambda _: call

    samples = interleave(
        {"short": contestant("short", 0.001), "long": contestant("long", 0.004)},
        CpuClock(),
        Effort("test", 0.0, 20, 20, 1, 0.02),
    )
    added = {name: median(samples[name].seconds) - alone for name, alone in (("short", 0.001), ("long", 0.004))}
    assert added["short"] == pytest.approx(added["long"])


def test_repeated_calls_have_inputs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    numbers: list[int] = []

    def prepare(index: int) -> Call:
        numbers.append(index)
        return lambda: watch.pass_time(0.001)

    assert interleave({"x": prepare}, CpuClock(), Effort("test", 0.0, 2, 2, 1, 0.0029))["x"].repeats == 3
    assert numbers == list(range(1 + 2 * 3))


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 2), (0.25, 3), (10.0, 4)])
def test_the_budget_buys_rounds_within_the_bounds(monkeypatch: pytest.MonkeyPatch, budget: float, rounds: int) -> None:
    contestants = {"x": Watch(monkeypatch).contestant(0.05, 0.05)}
    assert len(interleave(contestants, CpuClock(), Effort("test", budget, 2, 4, 1, 0.0))["x"].seconds) == rounds


def test_no_contestants_is_an_error() -> None:
    with pytest.raises(ValueError, match="no contestants"):
        interleave({}, CpuClock(), EFFORTS["smoke"])


def test_replay_clock_gives_the_samples_exactly() -> None:
    clock = ReplayClock()
    samples = [0.1, 1e-9, 7.3]
    clock.load(samples)
    measured = []
    for _ in samples:
        clock.rewind()
        start = clock()
        clock.replay()
        measured.append(clock() - start)
    assert measured == samples


def test_malloc_setting_needs_both_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MALLOC_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert malloc_setting() == "default"
    raised = malloc_environment("raised")
    monkeypatch.setenv(MALLOC_VARIABLES[0], raised[MALLOC_VARIABLES[0]])
    with pytest.raises(ValueError, match="set both"):
        malloc_setting()
    monkeypatch.setenv(MALLOC_VARIABLES[1], raised[MALLOC_VARIABLES[1]])
    assert malloc_setting() == "raised"
    assert not set(MALLOC_VARIABLES) & set(malloc_environment("default"))


def test_the_limit_is_the_fastest_way_to_a_product() -> None:
    found = measure_ceilings("cpu", ("float32",), EFFORTS["smoke"])
    fastest = {name: found.work[name] / min(entry.seconds) for name, entry in found.samples.items()}
    assert found.copy_bytes_per_s == fastest["copy"]
    assert found.flops_per_s == {"float32": max(fastest["matmul_float32"], fastest["convolution_float32"])}
    assert found.work["convolution_float32"] == found.work["matmul_float32"] == 2 * 64**3


def test_adapter_limit_by_hand() -> None:
    """The floors of one H200 call at 4.3 TB/s: 9.9 us forward and 13.3 us backward at C = 384, bfloat16, p = 0.5."""
    workload = AdapterWorkload(AdapterCase(180, 205, 384, 128, 0.5, "bfloat16"), "cpu")
    ceilings = Ceilings(4.3e12, {"bfloat16": 790e12}, {}, {})
    tensor = 180 * 205 * 384 * 2
    forward, backward, both = (workload.limit(mode, ceilings) for mode in ("forward", "backward", "both"))
    assert forward.bound == "bandwidth"
    assert forward.seconds == pytest.approx(1.5 * tensor / 4.3e12)
    assert backward.seconds == pytest.approx(2 * tensor / 4.3e12)
    assert both.seconds == pytest.approx(23.1e-6, rel=0.01)
    assert both.flops == 12 * 90 * 205 * 384 * 128
    slow = workload.limit("both", Ceilings(4.3e12, {"bfloat16": 1e12}, {}, {}))
    assert (slow.bound, slow.seconds) == ("matrix product", pytest.approx(both.flops / 1e12))


@pytest.mark.parametrize("mode", ["forward", "backward", "both"])
def test_prompt_limit_is_the_work_of_plain_products(mode: str) -> None:
    workload = PromptWorkload(PromptCase(12, 24, 5, 3), "cpu")
    limit = workload.limit(mode, Ceilings(1e9, {"float32": 1e12}, {}, {}))
    assert limit.flops == executed(workload.prepare("two_products", mode, 0))


def test_mlp_limit_is_the_work_of_its_products_and_reads_the_weights() -> None:
    workload = BranchWorkload(BranchCase("mlp", 3, 64, 7), "cpu")
    for mode, times in (("forward", 1), ("both", 2)):
        limit = workload.limit(mode, Ceilings(1e9, {"float32": 1e12}, {}, {}))
        assert limit.flops == executed(workload.prepare("torch", mode, 0))
        read = sum(weight.nbytes for weight in workload.weights)
        assert limit.bytes == times * (read + 2 * workload.make_input(0)[1].nbytes)


def test_attention_limit_is_the_work_of_its_products_with_the_weights_kept() -> None:
    """An implementation that computes them once more does more than it has to."""

    def plain(qkv: Tensor) -> Tensor:
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = (query @ key.transpose(-1, -2) / 8).softmax(-1) @ value
        return out.transpose(1, 2).reshape(*qkv.shape[:2], -1)

    workload = BranchWorkload(BranchCase("attention", 2, 128, 9), "cpu")
    input, grad = workload.make_input(0)
    both = executed(lambda: torch.autograd.grad([plain(input)], [input], [grad]))
    assert workload.limit("both", Ceilings(1e9, {"float32": 1e12}, {}, {})).flops == both


def executed(call: Call) -> int:
    """FLOP of the products that a call makes, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
