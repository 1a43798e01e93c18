"""float32 weights next to activations of a half type, as training under autocast has them."""

import pytest
import torch
from torch import Tensor

from puma_plugin.models import StochasticAdapter
from puma_plugin.ops import reference, stochastic_adapter

HALF_TYPES = (torch.bfloat16, torch.float16)
# The CPU's matrix unit, where there is one; other products; more than CUDA's fused kernels take.
SIZES = [(64, 32), (24, 8), (40, 150)]


def leaves(dtype: torch.dtype, width: int, rank: int, device: str) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    residual, tokens = normal(5, 7, width), normal(5, 7, width).to(dtype)
    down, up = normal(width, rank) / width**0.5, normal(rank, width) / rank**0.5
    gate = torch.tensor([2.0, 0.0, 2.0, 1.0, 0.0]).to(device)
    return [tensor.to(device).requires_grad_() for tensor in (residual, tokens, down, up)], gate


def results(inputs: list[Tensor], gate: Tensor) -> tuple[Tensor, ...]:
    out = stochastic_adapter(*inputs, gate)
    return out.detach(), *torch.autograd.grad(out, inputs, torch.linspace(-1, 1, out.numel()).to(out).view_as(out))


@pytest.mark.parametrize(("width", "rank"), SIZES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_rounded_where_they_are_used(dtype: torch.dtype, width: int, rank: int, device: str) -> None:
    inputs, gate = leaves(dtype, width, rank, device)
    found = results(inputs, gate)
    rounded = [*inputs[:2], *(weight.detach().to(dtype).requires_grad_() for weight in inputs[2:])]
    expected = results(rounded, gate)
    for got, want in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(got, want)
    for got, want in zip(found[3:], expected[3:], strict=True):
        assert got.dtype is torch.float32
        assert torch.equal(got.to(dtype), want)


def test_their_gradients_lose_nothing_to_a_last_rounding(device: str) -> None:
    inputs, gate = leaves(torch.bfloat16, 64, 32, device)
    *_, down, up = results(inputs, gate)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    with torch.no_grad():  # of the rounded weights
        for tensor in exact[2:]:
            tensor.copy_(tensor.bfloat16())
    out = reference.stochastic_adapter(*exact, gate.double())
    grad = torch.linspace(-1, 1, out.numel()).to(out).view_as(out)
    for got, want in zip((down, up), torch.autograd.grad(out, exact[2:], grad), strict=True):
        assert (got - want).norm() <= (got.bfloat16() - want).norm()  # equal where products of blocks are rounded


@pytest.mark.parametrize(("need_tokens", "need_weights"), [(True, True), (True, False), (False, True), (False, False)])
def test_gradients_that_are_not_needed_have_their_dtype(need_tokens: bool, need_weights: bool, device: str) -> None:
    (residual, *others), gate = leaves(torch.bfloat16, 64, 32, device)
    x = residual.detach(), *(tensor.detach() for tensor in others), gate
    _, hidden, prepared = torch.ops.puma.stochastic_adapter(*x, None, 0.1, True)
    arguments = x[0], *x[1:], hidden, prepared, 0.1, need_tokens, need_weights
    gradients = torch.ops.puma.stochastic_adapter_backward(*arguments)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    assert [gradient.numel() > 0 for gradient in gradients] == [need_tokens, need_weights, need_weights]


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_leaves_them_as_they_are(compiled: bool, device: str) -> None:
    inputs, gate = leaves(torch.bfloat16, 64, 32, device)
    expected = results(inputs, gate)
    torch._dynamo.reset()
    function = (
        torch.compile(stochastic_adapter, fullgraph=True, backend="aot_eager") if compiled else stochastic_adapter
    )
    wide = [inputs[0], inputs[1].detach().float().requires_grad_(), *inputs[2:]]
    with torch.autocast(device, torch.bfloat16):
        out = function(*wide, gate)
    gradients = torch.autograd.grad(out, wide, torch.linspace(-1, 1, out.numel()).to(out).view_as(out))
    for got, want in zip((out.detach(), *gradients), expected, strict=True):
        assert torch.equal(got, want.to(got.dtype))


def test_a_scale_that_is_trained_gets_its_gradient(device: str) -> None:
    adapter = StochasticAdapter(24, 8, drop=0.0, trainable_scale=True).to(device).train()
    torch.nn.init.normal_(adapter.up)
    tokens = torch.randn(3, 5, 24, device=device)
    with torch.autocast(device, torch.bfloat16):
        adapter(tokens, tokens).square().sum().backward()
    for parameter in adapter.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype is torch.float32
        assert parameter.grad.abs().sum() > 0


def test_tokens_that_are_computed_again_have_their_own_dtype(device: str) -> None:
    inputs, gate = leaves(torch.bfloat16, 24, 8, device)
    residual, tokens, down, up = inputs
    kept = stochastic_adapter(residual, tokens, down, up, gate)
    again = stochastic_adapter(residual, tokens, down, up, gate, recompute=(torch.Tensor.float, tokens.detach()))
    grad = torch.randn_like(kept)
    for got, want in zip(
        torch.autograd.grad(again, inputs, grad), torch.autograd.grad(kept, inputs, grad), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("tokens", "down", "up"),
    [
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
    ],
)
def test_no_other_mixture(tokens: torch.dtype, down: torch.dtype, up: torch.dtype, device: str) -> None:
    x = torch.zeros(2, 3, 8, dtype=tokens, device=device)
    weights = torch.zeros(8, 4, dtype=down, device=device), torch.zeros(4, 8, dtype=up, device=device)
    with pytest.raises(TypeError, match=rf"tokens' dtype {tokens}, or both float32 next to half types, got {down}"):
        stochastic_adapter(x, x, *weights)
    # The operator itself reads nothing that is not there either.
    with pytest.raises(RuntimeError, match="down and up must have the dtype of tokens"):
        torch.ops.puma.stochastic_adapter(x, x, *weights, None, None, 0.1, False)
