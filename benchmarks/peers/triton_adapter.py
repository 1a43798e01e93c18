"""The stochastic adapter as a small Triton kernel: both products, ReLU, gate and residual in one pass over the tokens.

The data gradient is the same kernel on (gradient, up^T, down^T) with the saved activation as mask; the weight gradients
are matrix products over the kept samples' rows. Kept samples' activations are stored compactly, dropped samples are
copied (forward) or zeroed (backward).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # tokens per program
COLUMNS = 64  # channels per step


@triton.jit
def _bottleneck(
    x, residual, first, second, factor, rank, hidden, out, tokens, width,
    R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BACKWARD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # forward:  hidden = relu(x @ first), out = residual + factor * hidden @ second
    # backward: d = factor * (x @ first) * (hidden > 0), out = d @ second, hidden = d
    sample = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (rows < tokens)[:, None]
    columns = tl.arange(0, COLUMNS)
    units = tl.arange(0, R)
    start = (sample * tokens + rows)[:, None] * width + columns[None, :]
    place = tl.load(rank + sample)
    scale = tl.load(factor + sample)
    if place < 0:
        for c in range(0, width, COLUMNS):
            if BACKWARD:
                tl.store(out + start + c, tl.zeros((ROWS, COLUMNS), out.dtype.element_ty), mask=inside)
            else:
                tl.store(out + start + c, tl.load(residual + start + c, mask=inside), mask=inside)
        return
    total = tl.zeros((ROWS, R), tl.float32)
    for c in range(0, width, COLUMNS):
        tile = tl.load(x + start + c, mask=inside, other=0.0)
        weights = tl.load(first + (c + columns)[:, None] * R + units[None, :])
        total = tl.dot(tile.to(weights.dtype), weights, total, input_precision=PRECISION)
    saved = hidden + (place.to(tl.int64) * tokens + rows)[:, None] * R + units[None, :]
    if BACKWARD:
        active = tl.load(saved, mask=inside, other=0.0) > 0
        total = tl.where(active, total * scale, 0.0)
    else:
        total = tl.maximum(total, 0.0)
    activation = total.to(first.dtype.element_ty)
    tl.store(saved, activation, mask=inside)
    for c in range(0, width, COLUMNS):
        weights = tl.load(second + units[:, None] * width + (c + columns)[None, :])
        branch = tl.dot(activation, weights, input_precision=PRECISION)
        if not BACKWARD:
            branch = tl.load(residual + start + c, mask=inside).to(tl.float32) + scale * branch
        tl.store(out + start + c, branch.to(out.dtype.element_ty), mask=inside)


def _launch(
    x: Tensor,
    residual: Tensor,
    first: Tensor,
    second: Tensor,
    factor: Tensor,
    rank: Tensor,
    hidden: Tensor,
    out: Tensor,
    backward: bool,
) -> None:
    samples, tokens, width = x.shape
    grid = (triton.cdiv(tokens, ROWS), samples)
    precision = "ieee" if first.dtype == torch.float32 else "tf32"  # as torch's own products; no effect on half types
    _bottleneck[grid](
        x, residual, first, second, factor, rank, hidden, out, tokens, width,
        R=first.shape[1], ROWS=ROWS, COLUMNS=COLUMNS, BACKWARD=backward, PRECISION=precision,
    )  # fmt: skip


def _of_kept(tensor: Tensor, kept: Tensor | None) -> Tensor:
    return tensor if kept is None else tensor.index_select(0, kept)


class _FusedAdapter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        tokens: Tensor,
        down: Tensor,
        up: Tensor,
        factor: Tensor,
        rank: Tensor,
        kept: Tensor | None,
    ) -> Tensor:
        out = torch.empty_like(residual)
        samples = len(tokens) if kept is None else kept.numel()
        hidden = tokens.new_empty(samples, tokens.shape[1], down.shape[1])
        _launch(tokens, residual, down, up, factor, rank, hidden, out, backward=False)
        ctx.save_for_backward(tokens, down, up, factor, rank, kept, hidden)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, down, up, factor, rank, kept, hidden = ctx.saved_tensors
        scaled = hidden * _of_kept(factor, kept).to(hidden.dtype)[:, None, None]
        rows = _of_kept(grad, kept).to(tokens.dtype).flatten(0, 1)
        grad_up = scaled.flatten(0, 1).T @ rows
        grad_tokens = torch.empty_like(tokens)
        _launch(grad, grad, up.T.contiguous(), down.T.contiguous(), factor, rank, hidden, grad_tokens, backward=True)
        grad_down = _of_kept(tokens, kept).flatten(0, 1).T @ hidden.flatten(0, 1)
        return grad, grad_tokens, grad_down, grad_up, None, None, None


def fused_adapter(
    residual: Tensor,
    tokens: Tensor,
    down: Tensor,
    up: Tensor,
    gate: Tensor | None,
    kept: Tensor | None,
    rank: Tensor,
    scale: float,
) -> Tensor:
    """The adapter by the Triton kernel; arguments as in `benchmarks.peers.adapter`, contiguous.

    Raises:
        ValueError: r is not a power of two of at least 16, or C not a multiple of 64.
    """
    samples, _, width = tokens.shape
    units = down.shape[1]
    if units < 16 or units & (units - 1) or width % COLUMNS:
        raise ValueError(f"r must be a power of two >= 16 and C a multiple of {COLUMNS}, got r = {units}, C = {width}")
    factor = tokens.new_full((samples,), scale, dtype=torch.float32) if gate is None else gate * scale
    return _FusedAdapter.apply(residual, tokens, down, up, factor, rank, kept)
