"""The stochastic adapter with the frozen branch's output as one more addend."""

from collections.abc import Callable

import pytest
import torch
from adapter_formula import DTYPES, OP, SHAPES, TOLERANCE, by_hand, gates, relu_mask
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from puma_plugin.ops import loader, reference, stochastic_adapter

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# Of the residual, of the rest, of the branch: all there is, and two that are converted at the door.
MIXES = [(residual, rest, residual) for residual, rest in DTYPES]
MIXES += [(F32, BF16, BF16), (F32, F16, F16), (F32, F16, BF16), (F64, F64, F32)]


def with_branch(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    branch = torch.randn(inputs[0].shape, dtype=torch.float64).to(inputs[0].device, dtype)
    return [*inputs, branch.requires_grad_()]


def call(inputs: list[Tensor], gate: Tensor | None = None, scale: float = 0.1) -> Tensor:
    return stochastic_adapter(*inputs[:4], gate, scale, branch=inputs[4])


@pytest.mark.parametrize("kind", ["none", "mixed", "none kept"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("residual_dtype", "dtype", "branch_dtype"), MIXES, ids=str)
def test_forward_and_backward_match_the_formula(
    device: str,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
    branch_dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    kind: str,
    adapter_inputs: Callable[..., list[Tensor]],
    error: Callable[[Tensor, Tensor], float],
) -> None:
    inputs = with_branch(adapter_inputs(*shape, dtype, residual_dtype), branch_dtype)
    gate = gates(kind, shape[0], device)
    out = call(inputs, gate, 0.3)
    assert out.dtype == residual_dtype
    assert out.is_contiguous()
    expected = by_hand(inputs[:4], gate, 0.3, relu_mask(inputs[:4], gate)) + inputs[4].double()
    assert error(out, expected) <= TOLERANCE[dtype]

    grad = torch.randn(out.shape, device=device, dtype=residual_dtype)
    wanted_grads = torch.autograd.grad(expected, inputs, grad.double())
    for got, wanted, leaf in zip(torch.autograd.grad(out, inputs, grad), wanted_grads, inputs, strict=True):
        assert got.dtype == leaf.dtype
        assert error(got, wanted) <= TOLERANCE[dtype]


def test_reference_is_the_formula(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = with_branch(adapter_inputs(5, 7, 24, 6, F64), F64)
    gate = gates("mixed", 5, device)
    got = reference.stochastic_adapter(*inputs[:4], gate, 0.3, inputs[4])
    torch.testing.assert_close(got, by_hand(inputs[:4], gate, 0.3) + inputs[4])


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_half_types_are_rounded_once(device: str, dtype: torch.dtype) -> None:
    """Two addends of 3/4 of half a last place each: 1 + their sum rounds up, adding one after the other stays at 1."""
    small = 0.375 * torch.finfo(dtype).eps
    one = torch.ones(1, 1, 8, dtype=dtype, device=device)
    down, up = torch.ones(8, 1, dtype=dtype, device=device), torch.full((1, 8), small / 8, dtype=dtype, device=device)
    branch = torch.full_like(one, small)
    rounded_once = stochastic_adapter(one, one, down, up, None, 1.0, branch=branch)
    assert torch.equal(rounded_once, one + torch.finfo(dtype).eps)
    assert torch.equal(stochastic_adapter(one + branch, one, down, up, None, 1.0), one)


@pytest.mark.parametrize(("width", "rank"), [(16, 4), (64, 32)])
@pytest.mark.parametrize(("residual_dtype", "dtype", "branch_dtype"), MIXES, ids=str)
def test_dropped_samples_are_residual_plus_branch(
    device: str,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
    branch_dtype: torch.dtype,
    width: int,
    rank: int,
    adapter_inputs: Callable[..., list[Tensor]],
) -> None:
    inputs = with_branch(adapter_inputs(4, 6, width, rank, dtype, residual_dtype), branch_dtype)
    with torch.no_grad():
        inputs[1][1:3] = float("nan")  # not even read
    out = call(inputs, torch.tensor([2.0, 0.0, 0.0, 2.0], device=device))
    assert torch.equal(out[1:3], (inputs[0] + inputs[4])[1:3])
    assert out.isfinite().all()
    out.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in inputs)


def test_gradcheck(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = with_branch(adapter_inputs(4, 3, 5, 4, F64), F64)
    gate = gates("mixed", 4, device)
    assert torch.autograd.gradcheck(lambda *leaves: call(list(leaves), gate), inputs)


def test_each_input_alone_gets_its_gradient(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = with_branch(adapter_inputs(4, 3, 5, 4, F64), F64)
    gate = gates("mixed", 4, device)
    every = torch.autograd.grad(call(inputs, gate).sum(), inputs)
    for i in range(5):
        alone = [t.detach().requires_grad_(j == i) for j, t in enumerate(inputs)]
        (got,) = torch.autograd.grad(call(alone, gate).sum(), alone[i])
        torch.testing.assert_close(got, every[i])


def test_out_is_never_an_input(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = [t.detach() for t in with_branch(adapter_inputs(3, 4, 8, 2, F32), F32)]
    inputs[0].zero_()
    out = call(inputs, gates("none kept", 3, device))
    assert torch.equal(out, inputs[4])
    assert out.data_ptr() not in {t.data_ptr() for t in inputs}


def test_not_contiguous(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = with_branch(adapter_inputs(4, 6, 8, 5, F64), F64)
    strided = [t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in inputs]
    gate = gates("mixed", 4, device)
    torch.testing.assert_close(call(strided, gate), call(inputs, gate))


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("half_branch", [True, False])
def test_autocast(
    device: str, dtype: torch.dtype, half_branch: bool, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    """A linear layer gives a half branch, a layer scale behind it a float32 one; the stream stays float32."""
    inputs = with_branch(adapter_inputs(4, 6, 16, 8, F32), dtype if half_branch else F32)
    gate = gates("mixed", 4, device)
    with torch.autocast(device, dtype):
        out = call(inputs, gate)
    half = [inputs[0], *(t.to(dtype) for t in inputs[1:4]), inputs[4]]
    assert torch.equal(out, call(half, gate))
    assert out.dtype == F32
    out.sum().backward()
    assert [leaf.grad.dtype for leaf in inputs] == [leaf.dtype for leaf in inputs]


def test_checkpointing_and_recomputed_tokens(device: str, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = with_branch(adapter_inputs(4, 3, 8, 4, F32), F32)
    gate = gates("mixed", 4, device)

    def double(x: Tensor) -> Tensor:
        return 2 * x

    def run(*leaves: Tensor) -> Tensor:
        return call(list(leaves), gate)

    def recomputing(residual: Tensor, x: Tensor, down: Tensor, up: Tensor, branch: Tensor) -> Tensor:
        return stochastic_adapter(residual, double(x), down, up, gate, 0.1, (double, x), branch)

    doubled = [inputs[0], double(inputs[1]), *inputs[2:]]
    for function, leaves, twin in ((run, inputs, inputs), (recomputing, inputs, doubled)):
        plain = torch.autograd.grad(run(*twin).square().sum(), inputs)
        again = checkpoint(function, *leaves, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(again.square().sum(), inputs), plain, rtol=0, atol=0)


@pytest.mark.parametrize(("residual", "rest", "branch"), [(F64, F64, F64), (F32, BF16, BF16), (F32, BF16, F32)])
def test_opcheck(
    device: str,
    residual: torch.dtype,
    rest: torch.dtype,
    branch: torch.dtype,
    adapter_inputs: Callable[..., list[Tensor]],
) -> None:
    inputs = with_branch(adapter_inputs(3, 5, 8, 4, rest, residual), branch)
    gate = torch.full((3,), 2.0, device=device, dtype=F64 if rest == F64 else F32)
    torch.library.opcheck(OP, (*inputs[:4], gate, inputs[4], 0.1, True))


@pytest.mark.parametrize("branch_dtype", [F32, BF16])
@pytest.mark.parametrize("autocast", [False, True])
def test_compile_without_graph_breaks(
    device: str, branch_dtype: torch.dtype, autocast: bool, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = with_branch(adapter_inputs(4, 6, 16, 8, F32), branch_dtype)
    gate = gates("mixed", 4, device)
    compiled = torch.compile(lambda leaves: call(leaves, gate), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, lambda leaves: call(leaves, gate)):
        with torch.autocast(device, BF16, enabled=autocast):
            out = function(inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    torch.testing.assert_close(results[0], results[1])


def test_second_derivative_and_forward_mode_are_refused(
    device: str, adapter_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = with_branch(adapter_inputs(2, 3, 8, 4, F64), F64)
    (grad,) = torch.autograd.grad(call(inputs).square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once.*ops\.reference"):
        grad.sum().backward()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[4].detach(), inputs[0].detach())
        with pytest.raises(NotImplementedError, match=r"forward-mode.*ops\.reference\.stochastic_adapter"):
            call([*inputs[:4], dual])


def test_without_kernels_the_definition_runs(
    monkeypatch: pytest.MonkeyPatch, adapter_inputs: Callable[..., list[Tensor]], device: str
) -> None:
    monkeypatch.setattr(loader, "KERNEL_DEVICES", frozenset())
    monkeypatch.setattr(loader, "_warned", {device})
    inputs = with_branch(adapter_inputs(2, 3, 8, 4, F32), F32)
    assert torch.equal(call(inputs), reference.stochastic_adapter(*inputs[:4], None, 0.1, inputs[4]))


BAD = [
    (torch.zeros(2, 3, 7), ValueError, r"branch must have residual's shape \(2, 3, 8\), got \(2, 3, 7\)"),
    (torch.zeros(1, 3, 8), ValueError, "branch must have residual's shape"),
    (torch.zeros(2, 3, 8, dtype=F64), TypeError, "branch must have residual's dtype torch.float32 or a narrower"),
    (torch.zeros(2, 3, 8, dtype=torch.int64), TypeError, "got torch.int64; cast it, or pass residual"),
    (torch.zeros(2, 3, 8, device="meta"), ValueError, "branch must be on residual's device cpu, got meta"),
]


@pytest.mark.parametrize(("branch", "kind", "message"), BAD)
def test_errors_at_the_door(branch: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call([torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), torch.zeros(8, 4), torch.zeros(4, 8), branch])


def test_halves_of_two_kinds_are_refused() -> None:
    """Neither bfloat16 nor float16 holds the other's values."""
    half = [torch.zeros(size, dtype=BF16) for size in ((2, 3, 8), (2, 3, 8), (8, 4), (4, 8))]
    with pytest.raises(TypeError, match=r"branch must have residual's dtype torch\.bfloat16"):
        call([*half, torch.zeros(2, 3, 8, dtype=F16)])
