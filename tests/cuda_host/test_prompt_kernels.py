"""Prompt matching's CUDA kernels, run on the host, against the definition and its gradients in float64."""

import shutil
from collections.abc import Callable

import pytest
import torch
from kernel_host import Request, run
from torch import Tensor

from puma_plugin.ops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

F64, F32 = torch.float64, torch.float32


def check(
    dtype: torch.dtype,
    b: int,
    m: int,
    length: int,
    c: int,
    with_prompt: bool = True,
    with_weights: bool = True,
    need_query: bool = True,
    zero_query: bool = False,
    spoil: Callable[[dict[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64).to(dtype)

    query, keys, attention, prompts = normal(b, c), normal(m, c), normal(m, c), normal(m, length, c)
    if zero_query:
        query[0] = 0
    if spoil is not None:
        spoil({"query": query, "keys": keys, "attention": attention, "prompts": prompts})
    grad_prompt = normal(b, length, c) if with_prompt else None
    grad_weights = normal(b, m) if with_weights else None
    words = {
        "kind": "prompts",
        "tokens": str(dtype).removeprefix("torch."),
        "residual": "none",
        "B": b,
        "M": m,
        "L": length,
        "C": c,
        "multiprocessors": 2,
        "shared_bytes": 49152,
        "seed": 0,
        "grad_prompt": int(with_prompt),
        "grad_weights": int(with_weights),
        "need_query": int(need_query),
    }
    shapes = {
        "prompt": (b, length, c),
        "weights": (b, m),
        "inverse_norm": (b, m),
        "query": (b, c) if need_query else (0,),
        "keys": (m, c),
        "attention": (m, c),
        "prompts": (m, length, c),
    }
    inputs = [query, keys, attention, prompts, grad_prompt, grad_weights]
    got = run(Request(words, inputs, {key: (shape, dtype) for key, shape in shapes.items()}))

    leaves = {"query": query, "keys": keys, "attention": attention, "prompts": prompts}
    leaves = {key: value.double().requires_grad_() for key, value in leaves.items()}
    prompt, weights = reference.match_prompts(*leaves.values())
    total = torch.zeros((), dtype=F64)
    if grad_prompt is not None:
        total = total + (prompt * grad_prompt.double()).sum()
    if grad_weights is not None:
        total = total + (weights * grad_weights.double()).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    want = {"prompt": prompt.detach(), "weights": weights.detach()}
    for (key, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        want[key] = torch.zeros_like(leaf) if gradient is None else gradient
    tolerance = 1e-12 if dtype == F64 else 1e-5
    for key, value in want.items():
        if key == "query" and not need_query:
            continue
        rows = slice(1, None) if zero_query and key in ("query", "inverse_norm") else slice(None)
        if value[rows].numel() == 0:
            continue
        assert torch.equal(got[key].isnan(), value.isnan()), key
        scale = value[rows].nan_to_num().abs().max().clamp_min(1e-30)
        error = (got[key].double() - value)[rows].nan_to_num().abs().max() / scale
        assert error <= tolerance, f"{key}: {error:.2e}"
    norm = (query.double().square() @ attention.double().softmax(-1).square().T).sqrt()
    rows = slice(1 if zero_query else 0, None)
    assert torch.allclose(got["inverse_norm"].double()[rows], 1 / norm[rows], rtol=1e-5, equal_nan=True)
    return got


@pytest.mark.parametrize("dtype", [F32, F64])
def test_sizes_of_the_paper(dtype: torch.dtype) -> None:
    check(dtype, b=9, m=20, length=8, c=384)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("b", "m", "length", "c"),
    [
        (1, 1, 1, 1),
        (11, 3, 2, 50),
        (9, 40, 1, 33),
        (4, 35, 3, 300),
        (200, 3, 1, 20),  # more images than a block takes at a time
        (3, 90, 1, 24),  # more prompts
        (2, 2, 1, 1100),  # more channels
        (2, 2, 9, 256),  # more columns
    ],
)
def test_any_size(dtype: torch.dtype, b: int, m: int, length: int, c: int) -> None:
    if c == 1 and dtype == F32:
        pytest.skip("with one channel every cosine is 1 and the gradients vanish up to rounding")
    check(dtype, b, m, length, c)


@pytest.mark.parametrize(("with_prompt", "with_weights"), [(True, False), (False, True)])
def test_missing_gradients_are_zeros(with_prompt: bool, with_weights: bool) -> None:
    check(F32, 5, 6, 2, 40, with_prompt, with_weights, need_query=False)


def test_an_empty_batch_gives_zero_gradients() -> None:
    check(F32, 0, 3, 2, 16, need_query=False)


def test_a_zero_query_has_zero_weights_and_finite_gradients() -> None:
    got = check(F64, 3, 5, 2, 24, zero_query=True)
    assert torch.equal(got["weights"][0], torch.zeros(5, dtype=F64))
    assert all(value.isfinite().all() for key, value in got.items() if key != "query")


def test_channels_with_logits_of_minus_infinity_do_not_count() -> None:
    def mask(inputs: dict[str, Tensor]) -> None:
        inputs["attention"][:, ::32] = -torch.inf  # all that one lane sees
        inputs["attention"][1, 1:50] = -torch.inf

    check(F64, 5, 3, 2, 70, spoil=mask)


@pytest.mark.parametrize("name", ["query", "keys", "attention", "prompts"])
def test_nan_reaches_what_depends_on_it_and_nothing_else(name: str) -> None:
    def spoil(inputs: dict[str, Tensor]) -> None:
        inputs[name][1, ..., 5] = torch.nan

    check(F32, 5, 3, 2, 40, spoil=spoil)
