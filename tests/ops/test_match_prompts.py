"""Prompt matching against its formula, written out here with the (B, M, C) tensor that the operator never builds."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from puma_plugin.ops import match_prompts, plain_pytorch, reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
SHAPES = [(7, 24, 5, 3), (1, 1, 1, 1), (9, 33, 1, 2), (3, 384, 20, 8), (0, 8, 3, 2), (2, 5, 9, 1), (13, 131, 6, 3)]


def by_hand(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    query, keys, attention, prompts = (t.double() for t in (query, keys, attention, prompts))
    focused = query[:, None, :] * torch.softmax(attention, dim=1)[None]
    weights = cosine_similarity(focused, keys[None], dim=2, eps=0)
    return (weights[:, :, None, None] * prompts[None]).sum(1), weights


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_forward_and_backward_match_the_formula(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    prompt_inputs: Callable[..., list[Tensor]],
    error: Callable[[Tensor, Tensor], float],
) -> None:
    inputs = prompt_inputs(*shape, dtype)
    outputs, expected = match_prompts(*inputs), by_hand(*inputs)
    for got, wanted in zip(outputs, expected, strict=True):
        assert got.dtype == dtype
        assert error(got, wanted) <= TOLERANCE[dtype]
    grads = [torch.randn(t.shape, device=device, dtype=dtype) for t in outputs]
    wanted_grads = torch.autograd.grad(expected, inputs, [g.double() for g in grads])
    magnitude = max((float(g.abs().max()) for g in wanted_grads if g.numel()), default=0.0)
    for got, wanted, leaf in zip(torch.autograd.grad(outputs, inputs, grads), wanted_grads, inputs, strict=True):
        assert got.dtype == leaf.dtype
        # With C = 1 the cosine is a constant sign: its gradients are zeros, up to rounding of values of this magnitude.
        scale = 1.0 if shape[1] > 1 else magnitude / max(float(wanted.abs().max()) if wanted.numel() else 0.0, 1e-30)
        assert error(got, wanted) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_do_not_depend_on_the_threads(dtype: torch.dtype, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    """On the CPU threads share columns or samples: every element comes from the same tile and is summed in its order.

    These sizes leave a rest behind the tiles of every instruction set, in rows, columns and prompts.
    """
    inputs = [t.detach().cpu().requires_grad_() for t in prompt_inputs(182, 398, 23, 8, dtype)]
    results = []
    try:
        for threads in (1, 2, 3, 5, 8):
            torch.set_num_threads(threads)
            outputs = match_prompts(*inputs)
            results.append([*outputs, *torch.autograd.grad([t.square().sum() for t in outputs], inputs)])
    finally:
        torch.set_num_threads(1)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(device: str, used: int, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    """The other output's gradient is absent, not zeros; prompts take no part in the weights."""
    inputs = prompt_inputs(4, 6, 3, 2, torch.float64)
    got = torch.autograd.grad(match_prompts(*inputs)[used].square().sum(), inputs)
    wanted = torch.autograd.grad(by_hand(*inputs)[used].square().sum(), inputs, materialize_grads=True)
    torch.testing.assert_close(got, wanted)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(0, 8),
    width=st.integers(2, 40),
    pool=st.integers(1, 9),
    length=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_any_shape(samples: int, width: int, pool: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(samples, width), (pool, width), (pool, width), (pool, length, width)]
    inputs = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    outputs, expected = match_prompts(*inputs), by_hand(*inputs)
    torch.testing.assert_close(outputs, expected)
    assert (outputs[1].abs() <= 1 + 1e-12).all()
    grads = [torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in outputs]
    torch.testing.assert_close(
        torch.autograd.grad(outputs, inputs, grads), torch.autograd.grad(expected, inputs, grads)
    )


def test_reference_is_the_formula(device: str, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = prompt_inputs(4, 6, 3, 2, torch.float64)
    torch.testing.assert_close(reference.match_prompts(*inputs), by_hand(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_reference_gives_zeros_no_weight(device: str, dtype: torch.dtype) -> None:
    query, keys = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    flat, prompts = torch.zeros(2, 2), torch.ones(2, 3, 2)
    inputs = [tensor.to(device, dtype) for tensor in (query, keys, flat, prompts)]
    prompt, weights = reference.match_prompts(*inputs)
    torch.testing.assert_close(weights, weights.new_tensor([[0, 0], [0, 1]]))
    torch.testing.assert_close(prompt, weights.new_tensor([0, 1])[:, None, None].expand(2, 3, 2))


def test_gradcheck(device: str, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = prompt_inputs(3, 5, 4, 2, torch.float64)
    assert torch.autograd.gradcheck(match_prompts, inputs)
    assert torch.autograd.gradcheck(match_prompts, [inputs[0].detach(), *inputs[1:]])


def test_query_may_be_detached(device: str, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = prompt_inputs(4, 6, 3, 2, torch.float64)
    every = torch.autograd.grad(match_prompts(*inputs)[0].sum(), inputs)
    frozen = [inputs[0].detach(), *inputs[1:]]
    torch.testing.assert_close(torch.autograd.grad(match_prompts(*frozen)[0].sum(), frozen[1:]), every[1:])


def test_each_input_alone_gets_its_gradient(device: str, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = prompt_inputs(4, 6, 3, 2, torch.float64)
    every = torch.autograd.grad(match_prompts(*inputs)[0].sum(), inputs)
    for i in range(4):
        alone = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs)]
        (got,) = torch.autograd.grad(match_prompts(*alone)[0].sum(), alone[i])
        torch.testing.assert_close(got, every[i])


def test_zero_query_and_zero_key_give_zero_weights(
    device: str, prompt_inputs: Callable[..., list[Tensor]], error: Callable[[Tensor, Tensor], float]
) -> None:
    inputs = prompt_inputs(3, 6, 4, 2, torch.float32)
    with torch.no_grad():
        inputs[0][1] = 0
        inputs[1][2] = 0
    prompt, weights = match_prompts(*inputs)
    assert torch.equal(weights[1], torch.zeros(4, device=device))
    assert torch.equal(weights[:, 2], torch.zeros(3, device=device))
    (prompt.sum() + weights.sum()).backward()
    # All else is as if the two were not there; the gradient of a zero vector itself is not defined.
    others = [[0, 2], [0, 1, 3], [0, 1, 3], [0, 1, 3]]
    rest = [t.detach()[rows].double().requires_grad_() for t, rows in zip(inputs, others, strict=True)]
    sum(output.sum() for output in by_hand(*rest)).backward()
    for leaf, expected, rows in zip(inputs, rest, others, strict=True):
        assert error(leaf.grad[rows], expected.grad) <= TOLERANCE[torch.float32]
    assert inputs[2].grad[2].abs().max() == inputs[3].grad[2].abs().max() == 0


def test_small_focus_does_not_underflow_in_half(device: str) -> None:
    """A softmax over 4,096 features squared is 6e-8, below the smallest normal of float16."""
    query = torch.ones(1, 4096, dtype=torch.float16, device=device)
    ones = torch.ones(2, 4096, dtype=torch.float16, device=device)
    weights = match_prompts(query, ones, torch.zeros_like(ones), ones[:, None])[1]
    torch.testing.assert_close(weights, torch.ones_like(weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(
    device: str, dtype: torch.dtype, prompt_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = prompt_inputs(5, 16, 4, 3, torch.float32)
    expected = match_prompts(*inputs)
    with torch.autocast(device, dtype):
        torch.testing.assert_close(match_prompts(*inputs), expected, rtol=0, atol=0)
        mixed = match_prompts(inputs[0].to(dtype), *inputs[1:])
        assert match_prompts(*(t.detach().double() for t in inputs))[0].dtype == torch.float64
    assert mixed[0].dtype == mixed[1].dtype == torch.float32
    torch.testing.assert_close(mixed, match_prompts(inputs[0].to(dtype).float(), *inputs[1:]))


def test_not_contiguous_inputs(device: str, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = prompt_inputs(5, 16, 4, 3, torch.float64)
    strided = [t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in inputs]
    outputs, expected = match_prompts(*strided), by_hand(*inputs)
    torch.testing.assert_close(outputs, expected)
    total, expected_total = outputs[0].sum() + outputs[1].sum(), expected[0].sum() + expected[1].sum()
    torch.testing.assert_close(torch.autograd.grad(total, strided), torch.autograd.grad(expected_total, inputs))


def test_second_derivative_is_refused_with_the_way_out(device: str, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = prompt_inputs(3, 5, 4, 2, torch.float64)
    (grad,) = torch.autograd.grad(match_prompts(*inputs)[0].square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"match_prompts can be differentiated once.*ops\.reference"):
        grad.sum().backward()


BAD = [
    ("query", torch.zeros(3), ValueError, r"query must have shape \(B, C\) with C >= 1, got \(3,\)"),
    ("query", torch.zeros(2, 0), ValueError, "C >= 1"),
    ("keys", torch.zeros(4, 7), ValueError, r"keys must have shape \(M, C\) with M >= 1 and C = 8, got \(4, 7\)"),
    ("keys", torch.zeros(0, 8), ValueError, "M >= 1"),
    ("keys", torch.zeros(4, 8, 1), ValueError, r"keys must have shape \(M, C\)"),
    ("attention", torch.zeros(3, 8), ValueError, r"attention must have keys' shape \(4, 8\), got \(3, 8\)"),
    (
        "prompts",
        torch.zeros(4, 8),
        ValueError,
        r"prompts must .* \(M, L, C\) with M = 4, L >= 1 and C = 8, got \(4, 8\)",
    ),
    ("prompts", torch.zeros(4, 3, 7), ValueError, r"C = 8, got \(4, 3, 7\)"),
    ("prompts", torch.zeros(5, 3, 8), ValueError, r"M = 4, .* got \(5, 3, 8\)"),
    ("prompts", torch.zeros(4, 0, 8), ValueError, "L >= 1"),
    ("query", torch.zeros(2, 8, dtype=torch.int64), TypeError, "query must be float32, .*, got torch.int64"),
    ("keys", torch.zeros(4, 8, dtype=torch.float64), TypeError, "got torch.float64, torch.float32 and torch.float32"),
    ("attention", torch.zeros(4, 8, dtype=torch.float64), TypeError, "got torch.float32, torch.float64 and"),
    ("prompts", torch.zeros(4, 3, 8, dtype=torch.float64), TypeError, "must have query's dtype torch.float32"),
    ("query", torch.zeros(2, 8, dtype=torch.bfloat16), TypeError, "query's dtype torch.bfloat16, got torch.float32"),
    ("keys", torch.zeros(4, 8, device="meta"), ValueError, "on query's device cpu, got keys on meta"),
    ("attention", torch.zeros(4, 8, device="meta"), ValueError, "attention on meta"),
    ("prompts", torch.zeros(4, 3, 8, device="meta"), ValueError, "prompts on meta"),
]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize(("name", "value", "kind", "message"), BAD)
def test_errors_at_the_door(
    name: str, value: Tensor, kind: type[Exception], message: str, with_gradient: bool, plain: bool
) -> None:
    arguments = {"query": torch.zeros(2, 8), "keys": torch.zeros(4, 8), "attention": torch.zeros(4, 8)}
    arguments |= {"prompts": torch.zeros(4, 3, 8)}
    for tensor in arguments.values():
        tensor.requires_grad_(with_gradient)
    with plain_pytorch() if plain else nullcontext(), pytest.raises(kind, match=message) as error:
        match_prompts(**(arguments | {name: value}))
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_an_error_that_is_not_about_arguments_stays_what_it_is() -> None:
    keys = torch.zeros(4, 8)
    with pytest.raises(NotImplementedError, match="SparseCPU"):
        match_prompts(torch.zeros(2, 8).to_sparse(), keys, keys, torch.zeros(4, 3, 8))


@pytest.mark.parametrize(("name", "value", "kind", "message"), BAD)
def test_the_operator_itself_reads_nothing_that_is_not_there(
    name: str, value: Tensor, kind: type[Exception], message: str
) -> None:
    arguments = {"query": torch.zeros(2, 8), "keys": torch.zeros(4, 8), "attention": torch.zeros(4, 8)}
    arguments |= {"prompts": torch.zeros(4, 3, 8), name: value}
    expected = kind if value.device.type == "meta" else RuntimeError
    with pytest.raises(expected, match=message if value.device.type == "meta" else r"puma::match_prompts: "):
        torch.ops.puma.match_prompts(*arguments.values())


@pytest.mark.parametrize(("place", "value"), [
    (0, torch.zeros(1, 3, 8)),  # the prompts' gradient
    (1, torch.zeros(2, 3)),  # the weights' gradient
    (2, torch.zeros(2, 8, dtype=torch.bfloat16)),  # the query
    (6, torch.zeros(1, 4)),  # the weights
    (7, torch.zeros(2, 4, dtype=torch.float64)),  # the inverse norms
])  # fmt: skip
def test_so_does_its_backward(place: int, value: Tensor) -> None:
    sizes = ((2, 3, 8), (2, 4), (2, 8), (4, 8), (4, 8), (4, 3, 8), (2, 4), (2, 4))
    arguments = [torch.ones(size) for size in sizes]
    torch.ops.puma.match_prompts_backward(*arguments, True)
    arguments[place] = value
    with pytest.raises(RuntimeError, match="puma::match_prompts: "):
        torch.ops.puma.match_prompts_backward(*arguments, True)


def test_forward_mode_is_refused_with_the_way_out(device: str, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = [t.detach() for t in prompt_inputs(3, 5, 4, 2, torch.float64)]
    with torch.autograd.forward_ad.dual_level():
        inputs[1] = torch.autograd.forward_ad.make_dual(inputs[1], torch.ones_like(inputs[1]))
        with pytest.raises(NotImplementedError, match=r"forward-mode.*ops\.reference\.match_prompts"):
            match_prompts(*inputs)
