"""The adapter's CUDA kernels, run on the host, against the definition in float64."""

import re
import shutil
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from kernel_host import FORMS, Request, run
from torch import Tensor

from puma_plugin.ops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SCALE = 0.1
KB = 1024
HOPPER = 227 * KB  # shared memory per block
# Too little for all weights: of C=320 where r <= 64, else of C=384. Rows that travel through it take more.
STREAMED = {("warps", 64): 60 * KB, ("warps", 128): 99 * KB, ("warpgroups", 64): 70 * KB, ("warpgroups", 128): 140 * KB}
STAGED_ROWS = 96 * KB
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# Of the largest element. float32 goes through three TF32 products: about 2^-21 per operand.
TOLERANCE = {F64: 1e-14, F32: 2e-6, F16: 2e-3, BF16: 1.2e-2}


@dataclass
class Case:
    """Sizes, types and the device's figures of one run."""

    tokens: torch.dtype
    residual: torch.dtype
    gate: list[float] | None  # one per sample; None: `samples` of them, all kept
    n: int
    c: int
    r: int
    samples: int = 1
    multiprocessors: int = 2
    streamed: bool = False  # the weights, whatever the device
    planned_for_warpgroups: bool = False  # although built without
    seed: int = 0
    transposed: bool = False
    need_tokens: bool = True
    need_weights: bool = True
    fused: bool = True
    branch: torch.dtype | None = None  # the residual's or the tokens'
    float_weights: bool = False
    form: str = "warps"


@dataclass
class Inputs:
    residual: Tensor
    tokens: Tensor
    down: Tensor
    up: Tensor
    gate: Tensor | None
    grad: Tensor
    branch: Tensor | None


def make_inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    b = case.samples if case.gate is None else len(case.gate)
    gate = None if case.gate is None else torch.tensor(case.gate, dtype=F64 if case.tokens == F64 else F32)
    weights = F32 if case.float_weights else case.tokens
    return Inputs(
        normal(b, case.n, case.c).to(case.residual),
        normal(b, case.n, case.c).to(case.tokens),
        (normal(case.c, case.r) / case.c**0.5).to(weights),
        (normal(case.r, case.c) / case.r**0.5).to(weights),
        gate,
        normal(b, case.n, case.c).to(case.residual),
        None if case.branch is None else normal(b, case.n, case.c).to(case.branch),
    )


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shared_bytes(case: Case) -> int:
    if not case.streamed:
        return HOPPER
    staged = case.form == "warpgroups" and case.residual == case.tokens
    return STREAMED[case.form, 64 if case.r <= 64 else 128] + (STAGED_ROWS if staged else 0)


def words_of(case: Case, x: Inputs) -> dict[str, object]:
    b = x.tokens.shape[0]
    words: dict[str, object] = {
        "kind": "adapter",
        "tokens": name(case.tokens),
        "residual": name(case.residual),
        "B": b,
        "N": case.n,
        "C": case.c,
        "r": case.r,
        "gate": int(x.gate is not None),
        "scale": SCALE,
        "multiprocessors": case.multiprocessors,
        "shared_bytes": shared_bytes(case),
        "seed": case.seed,
        "transposed": int(case.transposed),
        "need_tokens": int(case.need_tokens),
        "need_weights": int(case.need_weights),
        "fused": int(case.fused),
        "float_weights": int(case.float_weights),
        "branch": "none" if case.branch is None else "residual" if case.branch == case.residual else "tokens",
    }
    return {**words, "warpgroups": 1} if case.planned_for_warpgroups else words


def run_kernels(case: Case, x: Inputs) -> dict[str, Tensor]:
    b = x.tokens.shape[0]
    weights = [x.down.T, x.up.T] if case.transposed else [x.down, x.up]
    outputs = {
        "out": ((b, case.n, case.c), case.residual),
        "hidden": ((b * case.n, case.r), case.tokens),
        "grad_tokens": ((b, case.n, case.c) if case.need_tokens else (0,), case.tokens),
        "grad_down": ((case.c, case.r) if case.need_weights else (0,), x.down.dtype),
        "grad_up": ((case.r, case.c) if case.need_weights else (0,), x.up.dtype),
    }
    return run(
        Request(words_of(case, x), [x.residual, x.tokens, *weights, x.gate, x.grad, x.branch], outputs), case.form
    )


def expected(case: Case, x: Inputs, hidden: Tensor) -> dict[str, Tensor]:
    """In float64. The gradients use the ReLU mask of the kernel's own forward: near 0 its sign depends on rounding."""
    b = x.tokens.shape[0]
    gate = torch.ones(b, dtype=F64) if x.gate is None else x.gate.double()
    kept = gate != 0
    tokens, down, up, grad = x.tokens[kept].double(), x.down.double(), x.up.double(), x.grad[kept].double()
    out = x.residual.double() + (0.0 if x.branch is None else x.branch.double())
    out[kept] = reference.stochastic_adapter(out[kept], tokens, down, up, gate[kept], SCALE)
    activation = torch.relu(tokens @ down)
    scaled = grad * (gate[kept] * SCALE)[:, None, None]
    mask = hidden.reshape(activation.shape).double() > 0
    delta = scaled @ up.T * mask
    grad_tokens = torch.zeros(b, case.n, case.c, dtype=F64)
    grad_tokens[kept] = delta @ down.T
    return {
        "out": out,
        "hidden": activation.reshape(-1, case.r),
        "grad_tokens": grad_tokens,
        "grad_down": torch.einsum("bnc,bnr->cr", tokens, delta),
        "grad_up": torch.einsum("bnr,bnc->rc", activation, scaled),
    }


def check(case: Case) -> dict[str, Tensor]:
    x = make_inputs(case)
    got = run_kernels(case, x)
    kept = x.tokens.shape[0] if x.gate is None else int((x.gate != 0).sum())
    got["hidden"] = got["hidden"][: kept * case.n]
    want = expected(case, x, got["hidden"])
    for key, value in got.items():
        if value.numel() == 0:
            assert want[key].numel() == 0 or (key == "grad_tokens" and not case.need_tokens) or not case.need_weights
            continue
        tolerance = TOLERANCE[case.residual if key == "out" and case.residual == case.tokens else case.tokens]
        error = (value.double() - want[key]).abs().max() / want[key].abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{key}: {error:.2e} > {tolerance:.0e}"
    return got


MIXED = [2.0, 0.0, 0.0, 2.0, 2.0]
SMALL = {
    "bf16": Case(BF16, BF16, MIXED, 17, 64, 16),
    "fp16": Case(F16, F16, MIXED, 17, 64, 16),
    "fp32": Case(F32, F32, MIXED, 17, 64, 16),
    "bf16 tokens on a float32 stream, ragged": Case(BF16, F32, [0.0, 2.0, 2.0, 1.0], 37, 72, 100),
    "fp16 tokens on a float32 stream, ragged": Case(F16, F32, [0.0, 2.0, 2.0, 1.0], 37, 72, 100),
    "fp32, ragged": Case(F32, F32, [0.0, 2.0, 1.0], 13, 68, 100),
    "odd r": Case(BF16, BF16, MIXED, 3, 40, 5),
    "odd r, fp32": Case(F32, F32, MIXED, 3, 20, 7),
    "smallest": Case(F16, F16, [1.0], 1, 8, 1),
    "weights lying transposed": Case(BF16, BF16, MIXED, 5, 72, 24, transposed=True),
    "all kept, no gate": Case(BF16, F32, None, 19, 64, 32, samples=3),
    "many samples": Case(F32, F32, [float(i % 3) for i in range(300)], 1, 16, 8),
    "one token per sample": Case(BF16, BF16, [float(i % 3) for i in range(150)], 1, 16, 8),
    "several chunks per sample, different gates": Case(BF16, F32, [2.0, 0.0, 1.5, 1.0], 70, 64, 16),
    "negative gates": Case(F16, F16, [-2.0, 0.0, 1.5], 9, 32, 8),
    # 17 tiles of a warp, 5 of a warpgroup: in the second pass some warps have none.
    "several passes, weights resident": Case(BF16, BF16, [2.0, 0.0] * 6, 43, 64, 16, multiprocessors=1),
    "several passes, weights streamed": Case(
        BF16, BF16, [2.0, 0.0] * 6, 43, 320, 16, multiprocessors=1, streamed=True, branch=BF16
    ),
    "several passes, weights streamed, float32 stream": Case(
        F16, F32, [2.0, 0.0] * 6, 43, 320, 16, multiprocessors=1, streamed=True, branch=F16
    ),
    "several passes, weights streamed, only the weights' gradients": Case(
        BF16, BF16, [2.0, 0.0] * 6, 43, 640, 16, multiprocessors=1, streamed=True, need_tokens=False
    ),
    "planned for warpgroups, built without": Case(BF16, BF16, MIXED, 17, 320, 100, planned_for_warpgroups=True),
    "more blocks than tiles": Case(BF16, BF16, [2.0, 0.0], 5, 64, 16, multiprocessors=7),
    "with a branch": Case(BF16, BF16, MIXED, 17, 64, 16, branch=BF16),
    "with a branch, fp16": Case(F16, F16, MIXED, 19, 40, 70, branch=F16),
    "with a branch, fp32, ragged": Case(F32, F32, [0.0, 2.0, 1.0], 13, 68, 100, branch=F32),
    "with a bf16 branch on a float32 stream": Case(BF16, F32, [0.0, 2.0, 2.0, 1.0], 37, 72, 100, branch=BF16),
    "with a float32 branch on a float32 stream": Case(BF16, F32, [0.0, 2.0, 2.0, 1.0], 37, 72, 40, branch=F32),
    "with an fp16 branch, all kept": Case(F16, F32, None, 5, 64, 16, samples=3, branch=F16),
    "with a float32 branch, several passes": Case(F16, F32, [2.0, 0.0] * 6, 55, 64, 16, multiprocessors=1, branch=F32),
    "odd number of steps": Case(BF16, BF16, MIXED, 17, 192, 16),
    "odd number of steps, the last one nearly empty": Case(F16, F16, MIXED, 17, 136, 16),
    "odd number of steps, the last one nearly empty, float32 stream": Case(F16, F32, MIXED, 17, 136, 16),
    "float32 weights": Case(BF16, BF16, MIXED, 17, 64, 16, float_weights=True),
    "float32 weights, transposed, ragged": Case(
        F16, F32, [0.0, 2.0, 2.0, 1.0], 37, 72, 100, transposed=True, float_weights=True
    ),
    "only the tokens' gradient": Case(BF16, F32, MIXED, 7, 64, 70, need_weights=False),
    "only the weights' gradients": Case(BF16, BF16, MIXED, 7, 64, 70, need_tokens=False),
}
PAPER = {
    "ViT-S, bf16": Case(BF16, BF16, MIXED, 17, 384, 128),
    "ViT-S, bf16, r=64, resident": Case(BF16, BF16, MIXED, 17, 384, 64),
    "ViT-S, fp16 on float32, streamed": Case(F16, F32, [2.0, 0.0, 2.0], 9, 384, 128, streamed=True),
    "ViT-S, fp32": Case(F32, F32, [0.0, 2.0], 9, 384, 128),
    "ViT-S, bf16, with a branch": Case(BF16, BF16, MIXED, 17, 384, 128, branch=BF16),
    "ViT-S, fp32, with a branch": Case(F32, F32, [0.0, 2.0], 9, 384, 128, branch=F32),
    "ViT-B, bf16 on float32, with a branch": Case(BF16, F32, [0.0, 2.0], 17, 768, 128, branch=BF16),
    "ViT-B, bf16 on float32": Case(BF16, F32, [0.0, 2.0], 17, 768, 128),
    "ViT-B, fp32, r=64": Case(F32, F32, [2.0, 0.0], 5, 768, 64),
}
GENERAL = {
    "float64": Case(F64, F64, [0.0, 2.0, 1.0], 7, 13, 5, fused=False),
    "fp32, C not a multiple of 4": Case(F32, F32, [0.0, 2.0, 1.0], 7, 13, 5, fused=False, transposed=True),
    "bf16, r > 128": Case(BF16, F32, [0.0, 2.0, 1.0], 7, 24, 150, fused=False),
    "fp16, no gate": Case(F16, F16, None, 7, 13, 9, samples=2, fused=False),
    "float64, with a branch": Case(F64, F64, [0.0, 2.0, 1.0], 7, 13, 5, fused=False, branch=F64),
    "bf16, r > 128, with a branch": Case(BF16, F32, [0.0, 2.0, 1.0], 7, 24, 150, fused=False, branch=BF16),
    "fp16, r > 128, with a float32 branch": Case(F16, F32, [0.0, 2.0, 1.0], 7, 24, 150, fused=False, branch=F32),
    "float64, only tokens": Case(F64, F64, None, 7, 13, 9, samples=2, fused=False, need_weights=False),
    "bf16, only weights": Case(BF16, BF16, [0.0, 2.0], 7, 13, 9, fused=False, need_tokens=False),
}


def in_every_form(cases: dict[str, Case]) -> list[Any]:
    """float32 has one form only."""
    return [
        pytest.param(replace(case, form=form), id=f"{name}, {form}")
        for name, case in cases.items()
        for form in FORMS
        if form == "warps" or not (case.tokens == F32 or case.planned_for_warpgroups)
    ]


@pytest.mark.parametrize("case", in_every_form(SMALL))
def test_small(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    in_every_form({name: case for name, case in {**SMALL, **PAPER}.items() if re.search("streamed|resident", name)}),
)
def test_weights_are_streamed_or_resident_as_the_name_says(case: Case) -> None:
    """In the forward, and in the backward, which may have one product instead of two."""
    words = {**words_of(case, make_inputs(case)), "kind": "plan"}
    resident = run(Request(words, [], {"plan": ((10,), torch.int64)}), case.form)["plan"][2:4]
    assert resident.tolist() == [not case.streamed] * 2


@pytest.mark.parametrize("case", in_every_form(PAPER))
def test_sizes_of_the_paper(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", GENERAL.values(), ids=GENERAL)
def test_general_path(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("tokens", [BF16, F32])
def test_none_kept_passes_the_residual_untouched(tokens: torch.dtype, fused: bool) -> None:
    case = Case(tokens, F32, [0.0, 0.0], 21, 40, 8, fused=fused)
    x = make_inputs(case)
    x.tokens.fill_(torch.nan)  # not even read
    got = run_kernels(case, x)
    assert torch.equal(got["out"], x.residual)
    for key in ("grad_tokens", "grad_down", "grad_up"):
        assert torch.equal(got[key], torch.zeros_like(got[key])), key


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("branch", [F16, F32])
def test_none_kept_gives_residual_plus_branch_rounded_once(branch: torch.dtype, fused: bool) -> None:
    case = Case(F16, F32, [0.0, 0.0], 21, 40, 8, fused=fused, branch=branch)
    x = make_inputs(case)
    x.tokens.fill_(torch.nan)
    assert torch.equal(run_kernels(case, x)["out"], x.residual + x.branch)


@pytest.mark.parametrize("fused", [True, False])
def test_dropped_samples_are_skipped_not_multiplied(fused: bool) -> None:
    case = Case(F16, F16, [2.0, 0.0, 1.0], 11, 24, 8, fused=fused)
    x = make_inputs(case)
    clean = run_kernels(case, x)
    x.tokens[1], x.grad[1] = torch.nan, torch.inf
    got = run_kernels(case, x)
    rows = 2 * case.n
    assert torch.equal(got["hidden"][:rows], clean["hidden"][:rows])
    for key in ("out", "grad_tokens", "grad_down", "grad_up"):
        assert torch.equal(got[key], clean[key]), key
    assert torch.equal(got["out"][1], x.residual[1])


def test_nan_gate_counts_as_kept_and_nan_passes_the_relu() -> None:
    case = Case(BF16, BF16, [torch.nan, 1.0], 4, 16, 8)
    x = make_inputs(case)
    x.tokens[1, 2, 3] = torch.nan
    got = run_kernels(case, x)
    assert got["out"][0].isnan().all()
    assert got["out"][1, 2].isnan().all()
    assert got["hidden"][case.n + 2].isnan().all()
    assert not got["out"][1, [0, 1, 3]].isnan().any()


@pytest.mark.parametrize(
    "case", in_every_form({name: SMALL[name] for name in ("bf16", "fp32", "with a float32 branch, several passes")})
)
def test_bits_do_not_depend_on_the_schedule(case: Case) -> None:
    first, second = check(case), check(replace(case, seed=1))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("form", FORMS)
def test_float_weights_are_rounded_and_their_gradients_are_not(form: str) -> None:
    case = Case(BF16, BF16, MIXED, 17, 72, 40, form=form, float_weights=True)
    x = make_inputs(case)
    got = run_kernels(case, x)
    x.down, x.up = x.down.to(BF16), x.up.to(BF16)
    rounded = run_kernels(replace(case, float_weights=False), x)
    for key in ("out", "grad_tokens", "grad_down", "grad_up"):
        assert torch.equal(got[key].to(BF16), rounded[key]), key
    want = expected(case, x, got["hidden"][: 3 * case.n])
    for key in ("grad_down", "grad_up"):
        error, error_rounded = ((value[key].double() - want[key]).norm() for value in (got, rounded))
        assert error < error_rounded, key


@pytest.mark.parametrize("form", FORMS)
def test_streamed_and_resident_weights_give_the_same_bits(form: str) -> None:
    case = Case(BF16, BF16, MIXED, 9, 320, 40, form=form)
    resident, streamed = check(case), check(replace(case, streamed=True))
    for key, value in resident.items():
        assert torch.equal(value, streamed[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("c", [384, 768])
@pytest.mark.parametrize(
    ("tokens", "residual", "form"),
    [
        (BF16, BF16, "warps"),
        (BF16, BF16, "warpgroups"),
        (F16, F32, "warps"),
        (F16, F32, "warpgroups"),
        (F32, F32, "warps"),
    ],
)
@pytest.mark.parametrize("multiprocessors", [1, 5])
def test_a_whole_image(tokens: torch.dtype, residual: torch.dtype, form: str, c: int, multiprocessors: int) -> None:
    check(Case(tokens, residual, [2.0, 0.0, 2.0], 205, c, 128, multiprocessors=multiprocessors, form=form))
