"""The stochastic adapter against its formula."""

from collections.abc import Callable

import pytest
import torch
from adapter_formula import DTYPES, OP, SHAPES, TOLERANCE, by_hand, gates, relu_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from puma_plugin.ops import plain_pytorch, reference, stochastic_adapter


@pytest.mark.parametrize("kind", ["none", "mixed", "all kept", "none kept"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("residual_dtype", "dtype"), DTYPES, ids=str)
def test_forward_and_backward_match_the_formula(
    device: str,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    kind: str,
    adapter_inputs: Callable[..., list[Tensor]],
    error: Callable[[Tensor, Tensor], float],
) -> None:
    inputs = adapter_inputs(*shape, dtype, residual_dtype)
    gate = gates(kind, shape[0], device)
    out = stochastic_adapter(*inputs, gate, 0.3)
    assert out.dtype == residual_dtype
    assert out.is_contiguous()
    assert error(out, by_hand(inputs, gate, 0.3)) <= TOLERANCE[dtype]

    grad = torch.randn(out.shape, device=device, dtype=residual_dtype)
    expected = torch.autograd.grad(by_hand(inputs, gate, 0.3, relu_mask(inputs, gate)), inputs, grad.double())
    for got, wanted, leaf in zip(torch.autograd.grad(out, inputs, grad), expected, inputs, strict=True):
        assert got.dtype == leaf.dtype
        assert error(got, wanted) <= TOLERANCE[dtype]


def test_mask_differs_from_the_exact_one_only_at_zero(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(4, 50, 64, 32, torch.bfloat16)
    before = torch.einsum("bnc,cr->bnr", inputs[1].double(), inputs[2].double())
    certain = before.abs() > 1e-4
    assert certain.double().mean() > 0.99
    assert 0.4 < (before > 0).double().mean() < 0.6
    assert torch.equal(relu_mask(inputs, None).bool()[certain], before[certain] > 0)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(0, 6),
    length=st.integers(0, 9),
    width=st.integers(1, 40),
    rank=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    scale=st.floats(-3, 3),
)
def test_any_shape(samples: int, length: int, width: int, rank: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(samples, length, width), (samples, length, width), (width, rank), (rank, width)]
    inputs = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    gate = 2.0 * torch.randint(0, 2, (samples,), generator=generator).float()
    out, expected = stochastic_adapter(*inputs, gate, scale), by_hand(inputs, gate, scale)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad))


def test_reference_is_the_formula(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(5, 7, 24, 6, torch.float64)
    for kind in ("none", "mixed"):
        gate = gates(kind, 5, device)
        torch.testing.assert_close(reference.stochastic_adapter(*inputs, gate, 0.3), by_hand(inputs, gate, 0.3))
        torch.testing.assert_close(reference.stochastic_adapter(*inputs, gate), by_hand(inputs, gate, 0.1))


def test_reference_scales_in_the_type_of_the_residual(device: str) -> None:
    """bfloat16 has no 0.1."""
    one, zero = torch.ones(1, 1, 1, device=device), torch.zeros(1, 1, 1, device=device)
    half, weight = one.bfloat16(), one[0].bfloat16()
    for gate in (None, one[0, 0]):
        out = reference.stochastic_adapter(zero, half, weight, weight, gate, 0.1)
        assert torch.equal(out, 0.1 * one)
    assert reference.stochastic_adapter(zero.bfloat16(), half, weight, weight, one[0, 0]).dtype is torch.bfloat16


@pytest.mark.parametrize("shape", [(5, 7, 24, 6), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(("residual_dtype", "dtype"), DTYPES, ids=str)
def test_all_types_that_go_together_do_so_without_kernels(
    device: str,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    adapter_inputs: Callable[..., list[Tensor]],
    error: Callable[[Tensor, Tensor], float],
) -> None:
    residual, tokens, down, up = adapter_inputs(*shape, dtype, residual_dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for weights in ((down, up), (down.to(exact), up.to(exact))):
        with plain_pytorch():
            out = stochastic_adapter(residual, tokens, *weights)
        assert out.dtype == residual_dtype
        assert error(out, by_hand([residual, tokens, down, up], None, 0.1)) <= TOLERANCE[dtype]


def test_gradcheck(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(4, 3, 5, 4, torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    gate = gates("mixed", 4, device)
    assert torch.autograd.gradcheck(lambda *leaves: stochastic_adapter(*leaves[:4], gate, leaves[4]), (*inputs, scale))
    assert torch.autograd.gradcheck(lambda *leaves: stochastic_adapter(*leaves, None, 0.5), inputs)


def test_each_input_alone_gets_its_gradient(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(4, 3, 5, 4, torch.float64)
    gate = gates("mixed", 4, device)
    every = torch.autograd.grad(stochastic_adapter(*inputs, gate).sum(), inputs)
    for i in range(4):
        alone = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs)]
        (got,) = torch.autograd.grad(stochastic_adapter(*alone, gate).sum(), alone[i])
        torch.testing.assert_close(got, every[i])


@pytest.mark.parametrize(("width", "rank"), [(16, 4), (64, 32)])
@pytest.mark.parametrize(("residual_dtype", "dtype"), DTYPES, ids=str)
def test_dropped_samples_are_skipped_not_multiplied(
    device: str,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
    width: int,
    rank: int,
    adapter_inputs: Callable[..., list[Tensor]],
) -> None:
    inputs = adapter_inputs(4, 6, width, rank, dtype, residual_dtype)
    gate = torch.tensor([2.0, 0.0, 0.0, 2.0], device=device)
    with torch.no_grad():
        inputs[1][1:3] = float("nan")  # would spread through 0 * NaN
    out = stochastic_adapter(*inputs, gate)
    assert torch.equal(out[1:3], inputs[0][1:3])
    assert out.isfinite().all()
    grad = torch.ones_like(out)
    grad[1:3] = float("inf")
    passed, *gradients = torch.autograd.grad(out, inputs, grad)
    assert torch.equal(passed, grad)
    assert not gradients[0][1:3].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_nan_in_a_kept_sample_is_not_hidden(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(2, 3, 8, 4, torch.float32)
    with torch.no_grad():
        inputs[1][0, 1] = float("nan")
    out = stochastic_adapter(*inputs)
    assert out[0, 1].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_gradients_are_rounded_as_torch_rounds(device: str, dtype: torch.dtype) -> None:
    """One row with an activation of 1 and a gate of 1: the gradient of ``up`` is the float32 gradient, rounded once."""
    smallest = torch.finfo(dtype).smallest_normal if dtype == torch.bfloat16 else 2.0**-24
    ties = torch.linspace(1, 2, 4097) * 2.0 ** torch.arange(-16, 15)[:, None]  # also half-way
    special = torch.tensor([0.0, 65519.0, 65520.0, 1e30, float("inf"), float("nan"), smallest, smallest * 2.5])
    values = torch.cat([ties.flatten(), special, -special]).to(device)[None, None]
    residual = torch.zeros_like(values)
    tokens = torch.zeros_like(values, dtype=dtype)
    tokens[..., 0] = 1
    down = torch.zeros(values.numel(), 1, dtype=dtype, device=device)
    down[0] = 1
    up = torch.zeros(1, values.numel(), dtype=dtype, device=device, requires_grad=True)
    stochastic_adapter(residual, tokens, down, up, None, 1.0).backward(values)
    torch.testing.assert_close(up.grad, values[0].to(dtype), rtol=0, atol=0, equal_nan=True)


def test_every_half_value_survives(device: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15, device=device).to(torch.int16).view(dtype).view(1, 64, 1024)
        zeros = torch.zeros_like(every)
        out = stochastic_adapter(every, zeros, zeros[0, 0, :, None], zeros[0, :1])
        torch.testing.assert_close(out, every, rtol=0, atol=0, equal_nan=True)


def test_out_is_never_the_residual(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = [t.detach() for t in adapter_inputs(3, 4, 8, 2, torch.float32)]
    out = stochastic_adapter(*inputs, gates("none kept", 3, device))
    assert torch.equal(out, inputs[0])
    assert out.data_ptr() != inputs[0].data_ptr()


def test_hidden_holds_the_kept_samples_at_the_front(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = [t.detach() for t in adapter_inputs(4, 3, 8, 5, torch.float64)]
    hidden = OP(*inputs, torch.tensor([0.0, 2.0, 0.0, 2.0], device=device, dtype=torch.float64), None, 0.1, True)[1]
    assert hidden.shape == (12, 5)
    torch.testing.assert_close(hidden[:6].view(2, 3, 5), (inputs[1][[1, 3]] @ inputs[2]).clamp(min=0))
    assert OP(*inputs, None, None, 0.1, False)[1].shape == (0, 5)


class Calls(TorchDispatchMode):
    """Records which operators of puma ran, with their last argument."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "puma":
            self.seen.append((func._opname, args[-1]))
        return func(*args, **(kwargs or {}))


def test_nothing_is_saved_or_computed_without_need(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(2, 3, 8, 4, torch.float32)
    with Calls() as calls:
        with torch.no_grad():
            stochastic_adapter(*inputs)
        stochastic_adapter(*inputs)
        frozen = [inputs[0], inputs[1], inputs[2].detach(), inputs[3].detach()]
        stochastic_adapter(*frozen).sum().backward()
        stochastic_adapter(inputs[0], *(t.detach() for t in inputs[1:])).sum().backward()
    assert calls.seen == [
        ("stochastic_adapter", False),
        ("stochastic_adapter", True),
        ("stochastic_adapter", True),
        ("stochastic_adapter_backward", False),
        ("stochastic_adapter", False),
    ]


def test_not_contiguous_inputs(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(4, 6, 8, 5, torch.float64)
    gate = torch.tensor([0.0, 9.0, 2.0, 9.0, 2.0, 9.0, 0.0, 9.0], device=device)[::2]
    strided = [t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in inputs]
    assert not any(t.is_contiguous() for t in strided)
    out, expected = stochastic_adapter(*strided, gate), by_hand(inputs, gate, 0.1)
    torch.testing.assert_close(out, expected)
    # The gradient of a sum is an expanded scalar.
    torch.testing.assert_close(torch.autograd.grad(out.sum(), strided), torch.autograd.grad(expected.sum(), inputs))


def test_two_threads_give_one_threads_result(
    adapter_inputs: Callable[..., list[Tensor]], device: str, set_threads: Callable[[int], None]
) -> None:
    """Large enough to be split: worker threads see no autograd state, and sums are in a fixed order."""
    inputs = adapter_inputs(7, 100, 256, 16, torch.float32)
    gate = gates("mixed", 7, device)
    results = []
    for threads in (1, 2, 2):
        set_threads(threads)
        out = stochastic_adapter(*inputs, gate)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("residual_dtype", "dtype"), DTYPES, ids=str)
def test_many_samples_with_random_gates(
    device: str,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
    threads: int,
    set_threads: Callable[[int], None],
    adapter_inputs: Callable[..., list[Tensor]],
    error: Callable[[Tensor, Tensor], float],
) -> None:
    """Runs of one to many kept samples, more than fit into one block: each row is computed once, in its place."""
    samples = 150
    inputs = adapter_inputs(samples, 29, 256, 12, dtype, residual_dtype)
    gate = (torch.rand(samples) < 0.8).float().to(device) * 1.25
    set_threads(threads)
    out = stochastic_adapter(*inputs, gate)
    grad = torch.randn(out.shape, device=device, dtype=residual_dtype)
    got_grads = torch.autograd.grad(out, inputs, grad)
    expected = by_hand(inputs, gate, 0.1, relu_mask(inputs, gate))
    assert error(out, expected) <= TOLERANCE[dtype]
    for got, wanted in zip(got_grads, torch.autograd.grad(expected, inputs, grad.double()), strict=True):
        assert error(got, wanted) <= TOLERANCE[dtype]


def test_half_weight_gradients_are_summed_in_float32(device: str) -> None:
    """4,000 samples add 1/512 to a sum of 1: bfloat16 sums would stay at 1, as 1/512 is below half its last place."""
    samples = 4000
    tokens = torch.full((samples, 1, 1), 1 / 512, dtype=torch.bfloat16, device=device)
    tokens[0] = 1.0
    one = torch.ones(1, 1, dtype=torch.bfloat16, device=device)
    down = one.clone().requires_grad_()
    gate = torch.arange(samples, device=device).remainder(2).float()  # single samples: as many sums as samples
    gate[0] = 1.0
    stochastic_adapter(tokens, tokens, down, one, gate, 1.0).sum().backward()
    expected = 1 + (samples // 2) / 512
    assert down.grad.item() == pytest.approx(expected, rel=0.01)


def test_checkpointing_gives_the_same_gradients(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(4, 3, 8, 4, torch.float32)
    gate = gates("mixed", 4, device)
    plain = torch.autograd.grad(stochastic_adapter(*inputs, gate).square().sum(), inputs)
    recomputed = checkpoint(stochastic_adapter, *inputs, gate, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(recomputed.square().sum(), inputs), plain, rtol=0, atol=0)


def test_tensor_scale_gets_a_gradient(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = adapter_inputs(4, 3, 8, 4, torch.float64)
    scale = torch.tensor([0.3], device=device, requires_grad=True)
    out = stochastic_adapter(*inputs, None, scale)
    torch.testing.assert_close(out, by_hand(inputs, None, scale.double().item()))
    out.sum().backward()
    expected = (by_hand(inputs, None, 1.0) - inputs[0]).sum()
    assert scale.grad.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_branch_and_keeps_the_residual(
    device: str,
    dtype: torch.dtype,
    adapter_inputs: Callable[..., list[Tensor]],
    error: Callable[[Tensor, Tensor], float],
) -> None:
    inputs = adapter_inputs(4, 6, 16, 8, torch.float32)
    gate = gates("mixed", 4, device)
    with torch.autocast(device, dtype):
        out = stochastic_adapter(*inputs, gate)
        half = [inputs[0], *(t.to(dtype) for t in inputs[1:])]
        assert torch.equal(out, stochastic_adapter(*half, gate))
    assert out.dtype == torch.float32
    assert error(out, by_hand(inputs, gate, 0.1)) <= TOLERANCE[dtype]
    out.sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in inputs)
    with torch.autocast(device, dtype):
        doubles = [t.detach().double() for t in inputs]
        assert stochastic_adapter(*doubles, gate).dtype == torch.float64


def test_second_derivative_is_refused_with_the_way_out(
    device: str, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = adapter_inputs(2, 3, 8, 4, torch.float64)
    (grad,) = torch.autograd.grad(stochastic_adapter(*inputs).square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"stochastic_adapter can be differentiated once.*ops\.reference"):
        grad.sum().backward()


def test_gradient_of_a_call_that_saved_nothing_is_refused(
    device: str, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    out, *_ = OP(*adapter_inputs(2, 3, 8, 4, torch.float32), None, None, 0.1, False)
    with pytest.raises(RuntimeError, match="save_hidden=False"):
        out.sum().backward()


def test_the_operator_without_what_a_backward_needs(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = [tensor.detach() for tensor in adapter_inputs(4, 3, 8, 4, torch.float32)]
    gate = gates("mixed", 4, device)
    expected, *_ = OP(*inputs, gate, None, 0.5, False)
    assert torch.equal(torch.ops.puma.stochastic_adapter_inference(*inputs, gate, None, 0.5), expected)
    bad = [inputs[0], inputs[1][:2], *inputs[2:]]
    with pytest.raises(RuntimeError, match="puma::stochastic_adapter: "):
        torch.ops.puma.stochastic_adapter_inference(*bad, gate, None, 0.5)


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_what_is_recorded_without_gradient_can_be_differentiated(
    pre_dispatch: bool, device: str, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = [tensor.detach() for tensor in adapter_inputs(2, 3, 8, 4, torch.float32)]
    recorded = make_fx(lambda x: stochastic_adapter(x, *inputs[1:]), pre_dispatch=pre_dispatch)(inputs[0])
    residual = inputs[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(recorded(residual).sum(), residual)
    assert torch.equal(grad, torch.ones_like(residual))


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_tokens_are_not_kept_and_give_the_same_gradients(
    device: str, autocast: bool, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = adapter_inputs(4, 6, 16, 8, torch.float32)
    gate = gates("mixed", 4, device)

    def norm(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, (16,))

    def run(recompute: bool) -> tuple[list[Tensor], list[Tensor]]:
        kept: list[Tensor] = []
        residual, x, down, up = inputs
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            tokens = norm(x)
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                out = stochastic_adapter(residual, tokens, down, up, gate, 0.1, (norm, x) if recompute else None)
        return list(torch.autograd.grad(out.square().sum(), inputs)), [t for t in kept if t.shape == x.shape]

    (expected, kept), (got, kept_instead) = run(False), run(True)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert len(kept) == len(kept_instead) == 1
    assert kept[0].data_ptr() != inputs[1].data_ptr()
    assert kept_instead[0].data_ptr() == inputs[1].data_ptr()  # which the norm keeps anyway


@pytest.mark.parametrize("autocast", [False, True])
def test_tokens_are_recomputed_under_the_autocast_of_the_forward(
    device: str, autocast: bool, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    residual, x, down, up = adapter_inputs(4, 6, 16, 8, torch.float32)
    matrix = torch.randn(16, 16, device=device)
    seen: list[Tensor] = []

    def product(x: Tensor) -> Tensor:
        seen.append(x @ matrix)
        return seen[-1]

    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        out = stochastic_adapter(residual, product(x), down, up, recompute=(product, x))
    with torch.autocast(device, torch.bfloat16, enabled=not autocast):
        out.sum().backward()
    first, second = seen
    assert first.dtype == second.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert torch.equal(first, second)


def test_meta_tensors_know_no_autocast_but_may_be_recomputed() -> None:
    residual, x, down, up = (
        torch.zeros(size, device="meta", requires_grad=True) for size in ((2, 3, 8), (2, 3, 8), (8, 4), (4, 8))
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = stochastic_adapter(residual, 2 * x, down, up, recompute=(lambda x: 2 * x, x))
        out.sum().backward()
    assert out.dtype == torch.float32
    assert x.grad is not None


def test_forward_mode_is_refused_with_the_way_out(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = [t.detach() for t in adapter_inputs(2, 3, 8, 4, torch.float64)]
    for requires_grad in (False, True):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(inputs[1].requires_grad_(requires_grad), inputs[0])
            with pytest.raises(NotImplementedError, match=r"forward-mode.*ops\.reference\.stochastic_adapter"):
                stochastic_adapter(inputs[0], dual, *inputs[2:])
            stochastic_adapter(*inputs)  # no tangent, no error
