"""The stochastic adapter by index, with Triton kernels around torch's products.

As xformers drops residual branches: the kept samples are gathered and multiplied; one kernel, its ``scaled_index_add``,
adds the product at their places. That one works in place; here, as everywhere, the result is a new tensor, so the
kernel copies the dropped samples on its way.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.peers.adapter import fixed

BLOCK = 4096  # elements per program


@triton.jit
def _place(
    rows, base, out, rank, scale, elements,
    BLOCK: tl.constexpr, HAS_BASE: tl.constexpr,
):  # fmt: skip
    # out[b] = base[b] + scale * rows[rank[b]], without what is not there (rank < 0, no base)
    sample = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    total = tl.zeros((BLOCK,), tl.float32)
    if HAS_BASE:
        total += tl.load(base + sample * elements + at, mask=inside).to(tl.float32)
    place = tl.load(rank + sample).to(tl.int64)
    if place >= 0:
        total += scale * tl.load(rows + place * elements + at, mask=inside).to(tl.float32)
    tl.store(out + sample * elements + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gather(source, out, kept, scale, elements, BLOCK: tl.constexpr):
    # out[i] = scale * source[kept[i]]
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    sample = tl.load(kept + row)
    value = scale * tl.load(source + sample * elements + at, mask=inside).to(tl.float32)
    tl.store(out + row * elements + at, value.to(out.dtype.element_ty), mask=inside)


def _placed(rows: Tensor, base: Tensor | None, out: Tensor, rank: Tensor, scale: float) -> Tensor:
    elements = out[0].numel()
    grid = (triton.cdiv(elements, BLOCK), out.shape[0])
    _place[grid](
        rows, rows if base is None else base, out, rank, scale, elements, BLOCK=BLOCK, HAS_BASE=base is not None
    )
    return out


def _gathered(source: Tensor, kept: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Rows (kept * N, C) of the kept samples."""
    elements = source[0].numel()
    out = source.new_empty(kept.numel() * source.shape[1], source.shape[2], dtype=dtype)
    _gather[triton.cdiv(elements, BLOCK), kept.numel()](source, out, kept, scale, elements, BLOCK=BLOCK)
    return out


class _IndexedAdapter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, tokens: Tensor, down: Tensor, up: Tensor, kept: Tensor, rank: Tensor, scale: float
    ) -> Tensor:
        rows = _gathered(tokens, kept, 1.0, tokens.dtype)
        hidden = torch.relu_(rows @ down)
        out = _placed(hidden @ up, residual, torch.empty_like(residual), rank, scale)
        ctx.save_for_backward(rows, down, up, kept, rank, hidden)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, down, up, kept, rank, hidden = ctx.saved_tensors
        grad_rows = _gathered(grad, kept, ctx.scale, rows.dtype)
        delta = torch.ops.aten.threshold_backward(grad_rows @ up.T, hidden, 0)
        grad_tokens = _placed(delta @ down.T, None, torch.empty_like(grad, dtype=rows.dtype), rank, 1.0)
        return grad, grad_tokens, rows.T @ delta, hidden.T @ grad_rows, None, None, None


def indexed_adapter(
    residual: Tensor, tokens: Tensor, down: Tensor, up: Tensor, kept: Tensor | None, rank: Tensor, scale: float
) -> Tensor:
    """The adapter by index; arguments as of `benchmarks.peers.adapter`, contiguous."""
    if kept is None:
        return fixed(residual, tokens, down, up, None, scale)
    return _IndexedAdapter.apply(residual, tokens, down, up, kept, rank, scale)
