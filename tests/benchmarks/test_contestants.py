"""Contestants compute the same, in small shapes, and one that does not is found out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import memory, session
from benchmarks.agreement import DisagreementError, relative_errors, require_agreement
from benchmarks.peers import adapter as peers
from benchmarks.session import BenchSession
from benchmarks.settings import EFFORTS, Settings
from benchmarks.subjects import load_subject
from benchmarks.subjects.adapter import EAGER, SCALE, AdapterCase, AdapterWorkload, make_inputs
from benchmarks.subjects.branches import BranchCase, BranchWorkload
from benchmarks.subjects.evaluation import EvaluationCase, EvaluationWorkload
from benchmarks.subjects.overhead import OverheadCase, OverheadWorkload
from benchmarks.subjects.prompts import PromptCase, PromptWorkload
from benchmarks.subjects.sampling import DATASETS, STRETCH, M, SamplingWorkload, joined_labels, million_labels
from benchmarks.subjects.training_step import BATCHES, FORMS, OTHERS, StepCase, StepWorkload
from benchmarks.subjects.training_step import COMPILED as COMPILED_STEPS
from benchmarks.timing import CpuClock

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Settings(EFFORTS["smoke"], "cpu", "default", compiled=False)
CASES = [
    AdapterCase(4, 7, 24, 8, 0.5, "float32"),
    AdapterCase(3, 7, 24, 8, 0.0, "float32"),
    AdapterCase(4, 7, 24, 8, 0.25, "bfloat16"),
    AdapterCase(4, 7, 24, 8, 0.5, "bfloat16", "float32"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_adapter_contestants_agree(case: AdapterCase) -> None:
    workload = AdapterWorkload(case, "cpu")
    reference = workload.reference()
    for name in EAGER:
        errors = workload.check(name, reference)
        assert errors["branch"] < (1e-5 if case.dtype == "float32" else 4e-2), name


def test_adapter_inputs_for_the_check_have_exact_activations() -> None:
    inputs = make_inputs(AdapterCase(4, 7, 24, 8, 0.5, "bfloat16"), "cpu", 0, exact=True)
    activations = inputs.tokens.detach() @ inputs.down.detach()
    assert torch.equal(activations.double(), inputs.tokens.detach().double() @ inputs.down.detach().double())
    assert inputs.gate is not None
    assert inputs.gate.tolist().count(0.0) == 2
    assert inputs.gate.max() == 2.0


def test_authors_form_is_the_formula() -> None:
    inputs = make_inputs(CASES[0], "cpu", 1)
    assert inputs.gate is not None
    by_hand = torch.stack(
        [
            x + g * SCALE * (torch.relu(h @ inputs.down) @ inputs.up)
            for x, h, g in zip(inputs.residual, inputs.tokens, inputs.gate, strict=True)
        ]
    )
    result = peers.authors(inputs.residual, inputs.tokens, inputs.down, inputs.up, inputs.gate, SCALE)
    assert torch.allclose(result, by_hand, atol=1e-5)


def test_a_wrong_contestant_is_not_timed_and_the_others_are() -> None:
    subject = load_subject("adapter")
    plan = subject.plans(SMOKE)[-1]
    session = BenchSession(SMOKE)
    workload = session.workload(subject, plan.case)
    assert isinstance(workload, AdapterWorkload)
    right = workload.function("fixed")
    workload._functions["authors"] = lambda inputs: right(inputs) * 1.001
    outcome, fresh = session.outcome(subject, plan)
    assert fresh
    assert isinstance(outcome.failures["authors"], DisagreementError)
    assert set(outcome.samples) == set(plan.contestants) - {"authors"}
    assert all(len(samples.seconds) == EFFORTS["smoke"].min_rounds for samples in outcome.samples.values())


def test_relative_errors_by_hand() -> None:
    errors = relative_errors([torch.tensor([3.0, 4.5])], [torch.tensor([3.0, 4.0])], ["x"])
    assert errors == {"x": pytest.approx(0.1)}
    with pytest.raises(DisagreementError, match="x"):
        require_agreement(errors, 0.05)
    require_agreement(errors, 0.2)


@pytest.mark.parametrize("bad", [None, torch.ones(3), torch.tensor([1.0, float("nan")])])
def test_missing_or_misshapen_or_nan_results_disagree(bad: torch.Tensor | None) -> None:
    with pytest.raises(DisagreementError, match="grad"):
        relative_errors([bad], [torch.ones(2)], ["grad"])


def test_prompt_contestants_agree() -> None:
    workload = PromptWorkload(PromptCase(5, 12, 4, 3), "cpu")
    reference = workload.reference()
    for name in ("ours", "authors", "two_products"):
        assert workload.check(name, reference)["grad attention"] < 2e-5, name


@pytest.mark.parametrize(
    "case",
    [
        BranchCase("mlp", 3, 32, 200),
        BranchCase("attention", 2, 64, 9),
        BranchCase("attention", 2, 64, 9, "bfloat16"),
    ],
)
def test_branch_contestants_agree(case: BranchCase) -> None:
    workload = BranchWorkload(case, "cpu")
    reference = workload.reference()
    for name in ("ours", "torch"):
        assert workload.check(name, reference)["grad input"] < (1e-5 if case.dtype == "float32" else 1e-2), name
        assert workload.prepare(name, "forward", 1)().shape == (case.batch, case.tokens, case.width)


def test_training_step_contestants_agree_and_train() -> None:
    workload = StepWorkload(StepCase("vit_tiny_patch16_224", 4, 32, 2, 8), "cpu")
    reference = workload.reference()
    for name in (*FORMS, *OTHERS, *COMPILED_STEPS):
        workload.check(name, reference)
        trainee = workload.trainee(name)
        before = trainee.proxies.detach().clone()
        workload.prepare(name, "step", 0)()
        assert not torch.equal(trainee.proxies, before), name
        assert all(parameter.grad is None for parameter in trainee.model.parameters()), name
    trained = {
        name: sum(parameter.requires_grad for parameter in workload.trainee(name).model.parameters())
        for name in ("ours", "authors", "without_adapters")
    }
    assert trained["without_adapters"] == 3 + 2  # the pool's three tensors, the head's two
    assert (
        trained["ours"] == trained["authors"] == trained["without_adapters"] + 2 * 2 * 2
    )  # down and up, two per block


def test_a_training_steps_peak_memory_holds_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other batches would lessen the differences between contestants."""
    workload = StepWorkload(StepCase("vit_tiny_patch16_224", 2, 32, 2, 8), "cpu")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(workload, "step", lambda trainee, *batch: seen.append(batch))
    memory._run(workload, "step", "ours")
    assert len(seen) == memory.STEPS
    assert len(workload.batches) == 1


def test_a_training_steps_batches_rotate() -> None:
    workload = StepWorkload(StepCase("vit_tiny_patch16_224", 2, 32, 2, 8), "cpu")
    images = [workload.images(index)[0] for index in range(BATCHES + 1)]
    assert images[BATCHES] is images[0]
    assert all(not torch.equal(images[0], other) for other in images[1:BATCHES])


def test_overhead_contestants_agree_and_a_wrong_one_is_found() -> None:
    workload = OverheadWorkload(OverheadCase(), "cpu")
    for name in ("ours", "fixed"):
        assert workload.check(name, None)["output"] < 1e-6
    workload.functions["ours"] = lambda *_: torch.tensor(1.0)
    with pytest.raises(DisagreementError, match="output"):
        workload.check("ours", None)


def test_evaluation_contestants_agree() -> None:
    workload = EvaluationWorkload(EvaluationCase(480, 16, 6), "cpu")
    reference = workload.reference()
    workload.check("ours", reference)
    assert 0.1 < reference["unified.recall_at_1"] < 0.9
    assert len(reference) == 9 * 3


def test_sampling_contestants_draw_what_they_should() -> None:
    subject = load_subject("sampling")
    for plan in subject.plans(SMOKE):
        workload = subject.workload(plan.case, "cpu")
        assert isinstance(workload, SamplingWorkload)
        for name in plan.contestants:
            workload.check(name, workload.reference())
            assert workload.prepare(name, plan.mode, 0)(), (plan.mode, name)
    # Four stretches go beyond an epoch of 312 batches; each continues where the one before ended.
    fresh = SamplingWorkload(plan.case, "cpu")
    drawn = [batch for _ in range(4) for batch in fresh.stretch("ours")]
    sampler = fresh.build("ours")
    assert drawn == [*sampler, *sampler][: 4 * STRETCH]


def test_what_runs_on_the_cpu_is_timed_there_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By events of a device that has nothing to do it would take no time at all."""
    clocks: list[str] = []

    def choose(device: str, _: bool) -> CpuClock:
        clocks.append(device)
        return CpuClock()

    monkeypatch.setattr(session, "make_clock", choose)
    beside_a_gpu = Settings(EFFORTS["smoke"], "cuda", "default", compiled=False)
    for name in ("sampling", "evaluation"):
        subject = load_subject(name)
        BenchSession(beside_a_gpu).outcome(subject, subject.plans(beside_a_gpu)[0])
    assert clocks == ["cpu", "cpu"]


def test_every_sample_of_stretches_holds_the_start_of_an_epoch() -> None:
    subject = load_subject("sampling")
    plan = next(plan for plan in subject.plans(SMOKE) if plan.mode == "hundred_batches")
    bench_session = BenchSession(SMOKE)
    workload = bench_session.workload(subject, plan.case)
    assert isinstance(workload, SamplingWorkload)
    outcome, _ = bench_session.outcome(subject, plan)
    per_sample = outcome.samples["ours"].repeats * STRETCH
    assert per_sample >= workload.reference() == 312
    assert workload.least_repeats("epoch") == workload.least_repeats("first_batch") == 1


def test_joined_labels_have_the_papers_counts() -> None:
    labels = joined_labels(1.0)
    assert len(labels) == sum(images for _, images in DATASETS)
    assert len(labels[:, 0].unique()) == 15_952
    assert labels[:, 1].unique().tolist() == list(range(8))


def test_million_labels() -> None:
    labels = million_labels(1.0)
    assert labels.shape == (1_000_000, 2)
    sizes = labels[:, 0].bincount()
    assert len(sizes) == 20_000
    assert sizes.min() >= M
    assert labels.unique(dim=0)[:, 1].bincount().tolist() == [10_000, 4_000, 2_000, 2_000, 800, 600, 400, 200]


IN_TRITON = """
from benchmarks.subjects.adapter import TRITON, AdapterCase, AdapterWorkload
half = (2, 5, 64, 16, 0.5, "float16")
for sizes in ((3, 70, 128, 16, 1 / 3), (2, 5, 64, 16, 0.0), half, (*half, "float32")):
    workload = AdapterWorkload(AdapterCase(*sizes), "cpu")
    for name in TRITON:
        workload.check(name, workload.reference())
print("agrees")
"""


def test_triton_contestants_agree_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IN_TRITON], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "agrees", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["authors_compiled", "fixed_compiled"])
def test_compiled_contestants_agree(name: str) -> None:
    workload = AdapterWorkload(CASES[0], "cpu")
    workload.check(name, workload.reference())
