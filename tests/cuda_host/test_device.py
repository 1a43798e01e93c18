"""What only a GPU can show: the compiled kernels at full size, in graphs, on other streams, beyond 2^31 elements."""

import pytest
import torch
from torch import Tensor

from puma_plugin import ops
from puma_plugin.ops import reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {F32: 2e-6, F16: 2e-3, BF16: 1.2e-2}


def inputs(
    tokens: torch.dtype, residual: torch.dtype, b: int, n: int, c: int, r: int, p: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    gate = (torch.rand(b, device="cuda") >= p).float() / max(1 - p, 0.5)
    return (
        torch.randn(b, n, c, device="cuda").to(residual).requires_grad_(),
        torch.randn(b, n, c, device="cuda").to(tokens).requires_grad_(),
        (torch.randn(c, r, device="cuda") / c**0.5).to(tokens).requires_grad_(),
        (torch.randn(r, c, device="cuda") / r**0.5).to(tokens).requires_grad_(),
        gate,
    )


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("p", [0.5, 0.0])
@pytest.mark.parametrize(("c", "r"), [(384, 128), (768, 128), (768, 64), (384, 40)])
@pytest.mark.parametrize(("tokens", "residual"), [(BF16, BF16), (BF16, F32), (F16, F16), (F16, F32), (F32, F32)])
def test_full_size(tokens: torch.dtype, residual: torch.dtype, c: int, r: int, p: float) -> None:
    x, h, down, up, gate = inputs(tokens, residual, 48, 205, c, r, p)
    grad = torch.randn_like(x)
    out, hidden, prepared = torch.ops.puma.stochastic_adapter(x, h, down, up, gate, None, 0.1, True)
    kept = gate != 0
    want = reference.stochastic_adapter(x.double(), h.double(), down.double(), up.double(), gate.double(), 0.1)
    assert relative_error(out, want) <= TOLERANCE[residual if tokens == residual else tokens]
    assert torch.equal(out[~kept], x[~kept])

    backward = torch.ops.puma.stochastic_adapter_backward(grad, h, down, up, gate, hidden, prepared, 0.1, True, True)
    rows = int(kept.sum()) * 205
    g = (grad.double() * (gate.double() * 0.1)[:, None, None])[kept].reshape(rows, c)
    mask = hidden[:rows].double() > 0  # the kernel's own: near 0 the sign depends on rounding
    delta = g @ up.double().T * mask
    activation = torch.relu(h.double()[kept].reshape(rows, c) @ down.double())
    grad_tokens = torch.zeros_like(x, dtype=torch.float64)
    grad_tokens[kept] = (delta @ down.double().T).reshape(-1, 205, c)
    wants = [grad_tokens, h.double()[kept].reshape(rows, c).T @ delta, activation.T @ g]
    for name, got, expected in zip(("tokens", "down", "up"), backward, wants, strict=True):
        assert relative_error(got, expected) <= TOLERANCE[tokens], name


@pytest.mark.parametrize(
    ("tokens", "residual", "branch"), [(BF16, BF16, BF16), (BF16, F32, BF16), (F16, F32, F32), (F32, F32, F32)]
)
@pytest.mark.parametrize("r", [128, 150])  # the fused kernels and the general path
def test_branch_is_added_in_the_same_pass(
    tokens: torch.dtype, residual: torch.dtype, branch: torch.dtype, r: int
) -> None:
    x, h, down, up, gate = inputs(tokens, residual, 16, 205, 384, r)
    beside = torch.randn_like(x).to(branch).requires_grad_()
    out = ops.stochastic_adapter(x, h, down, up, gate, 0.1, branch=beside)
    doubles = [t.detach().double() for t in (x, h, down, up, gate)]
    want = reference.stochastic_adapter(*doubles, 0.1, beside.detach().double())
    assert relative_error(out, want) <= TOLERANCE[residual if tokens == residual else tokens]
    assert torch.equal(out[gate == 0], (x + beside)[gate == 0])
    grad = torch.randn_like(x)
    got_x, got_beside = torch.autograd.grad(out, (x, beside), grad)
    assert torch.equal(got_x, grad)
    assert torch.equal(got_beside, grad.to(branch))


def test_the_same_bits_every_time() -> None:
    x, h, down, up, gate = inputs(BF16, F32, 32, 205, 384, 128)
    runs = []
    for _ in range(5):
        out = ops.stochastic_adapter(x, h, down, up, gate, 0.1)
        runs.append([out, *torch.autograd.grad(out.square().sum(), (h, down, up))])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_two_backwards_of_one_forward() -> None:
    x, h, down, up, gate = inputs(BF16, BF16, 32, 205, 384, 128)
    out = ops.stochastic_adapter(x, h, down, up, gate, 0.1)
    grad = torch.randn_like(x)
    first = torch.autograd.grad(out, (h, down, up), grad, retain_graph=True)
    second = torch.autograd.grad(out, (h, down, up), grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not first[0][gate == 0].any()


def test_a_backward_right_behind_its_forward() -> None:
    x, h, down, up, gate = inputs(BF16, F32, 64, 205, 384, 128)
    grads = [torch.randn_like(x) for _ in range(4)]
    for grad in grads:  # queued while the device waits, so that nothing lies between forward and backward
        torch.cuda._sleep(2_000_000)
        quick = torch.autograd.grad(ops.stochastic_adapter(x, h, down, up, gate, 0.1), (h, down, up), grad)
        out = ops.stochastic_adapter(x, h, down, up, gate, 0.1)
        torch.cuda.synchronize()
        slow = torch.autograd.grad(out, (h, down, up), grad)
        assert all(torch.equal(a, b) for a, b in zip(quick, slow, strict=True))


def test_a_graph_replays_with_another_gate() -> None:
    x, h, down, up, gate = (t.detach() for t in inputs(BF16, BF16, 16, 50, 384, 128))
    operator = torch.ops.puma.stochastic_adapter
    operator(x, h, down, up, gate, None, 0.1, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operator(x, h, down, up, gate, None, 0.1, False)[0]
    for kept in (0, 1, 9, 16):
        gate.copy_(torch.arange(16, device="cuda") < kept)
        graph.replay()
        assert torch.equal(captured, operator(x, h, down, up, gate, None, 0.1, False)[0])


def test_nothing_waits_for_the_device() -> None:
    x, h, down, up, gate = inputs(BF16, F32, 8, 20, 64, 16)
    ops.stochastic_adapter(x, h, down, up, gate, 0.1).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.stochastic_adapter(x, h, down, up, gate, 0.1).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used() -> None:
    x, h, down, up, gate = (t.detach() for t in inputs(F16, F16, 16, 205, 384, 128))
    want = ops.stochastic_adapter(x, h, down, up, gate, 0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = h * 0
        torch.cuda._sleep(20_000_000)
        late += h
        got = ops.stochastic_adapter(x, late, down, up, gate, 0.1)
    stream.synchronize()
    assert torch.equal(got, want)


def test_views_that_are_not_aligned() -> None:
    x, h, down, up, gate = (t.detach() for t in inputs(BF16, BF16, 4, 9, 64, 16))
    shifted = torch.empty(h.numel() + 1, device="cuda", dtype=BF16)[1:].view_as(h).copy_(h)
    want = ops.stochastic_adapter(x, h, down, up, gate, 0.1)
    assert torch.equal(ops.stochastic_adapter(x, shifted, down, up, gate, 0.1), want)


def test_more_than_2_to_the_31_elements() -> None:
    b, n, c, r = 5600, 1000, 384, 16
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of free device memory")
    tokens = torch.randn(n, c, device="cuda", dtype=BF16).expand(b, n, c).contiguous()
    residual = torch.zeros_like(tokens)
    down, up = (torch.randn(*shape, device="cuda").to(BF16) for shape in ((c, r), (r, c)))
    gate = torch.zeros(b, device="cuda")
    gate[[0, b - 1]] = 1
    operators = torch.ops.puma
    out, hidden, prepared = operators.stochastic_adapter(residual, tokens, down, up, gate, None, 0.1, True)
    assert tokens.numel() > 2**31
    assert out[0].any()
    assert torch.equal(out[b - 1], out[0])
    assert not out[1 : b - 1].any()
    grad_tokens, *_ = operators.stochastic_adapter_backward(
        tokens, tokens, down, up, gate, hidden, prepared, 0.1, True, False
    )
    assert torch.equal(grad_tokens[b - 1], grad_tokens[0])
    assert grad_tokens[0].any()
