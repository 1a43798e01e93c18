"""Self-attention over packed queries, keys and values: validation and autograd around the compiled operator."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from puma_plugin.ops import loader
from puma_plugin.ops.eager import below_autograd, cpu_kernel_dtype, differentiable_once

# Looked up once. They are called only where the library is loaded.
_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.packed_attention.default
_backward_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.packed_attention_backward.default


def packed_attention(qkv: Tensor, scale: float | None = None) -> Tensor:
    """``softmax(scale * q @ k^T) @ v`` of each head, of q, k and v as one linear layer gives them.

    In eager code on the CPU, in float32 or bfloat16 (also autocast's), it runs a compiled operator, which keeps for the
    backward only qkv and one number per query and head, and whose gradient comes in qkv's layout. It computes in
    float32, and serves D a multiple of 16 up to 128, N up to 4096 and processors with AVX2; bfloat16 not on those with
    AMX, whose matrix unit torch uses. Everything else goes to
    ``torch.nn.functional.scaled_dot_product_attention``, the same function: other dtypes and devices,
    ``torch.compile``, ``torch.func``, forward mode, dispatch modes, and ``sdpa_kernel`` without the flash backend.

    Args:
        qkv: (B, N, 3, H, D), floating point: queries, keys and values of N tokens and H heads.
        scale: a finite number; None means ``D ** -0.5``.

    Returns:
        (B, N, H * D), in qkv's dtype; in autocast's under autocast. Where the operator runs, differentiable once.

    Raises:
        TypeError: qkv is not floating point, or a scale that is no number.
        ValueError: a shape that does not fit, or a scale that is not finite.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3 or qkv.shape[3] < 1 or qkv.shape[4] < 1:
        raise ValueError(f"qkv must have shape (B, N, 3, H, D) with H, D >= 1, got {tuple(qkv.shape)}")
    if not qkv.dtype.is_floating_point:
        raise TypeError(f"qkv must be floating point, got {qkv.dtype}")
    if scale is None:
        scale = qkv.shape[4] ** -0.5
    elif isinstance(scale, bool) or not isinstance(scale, float | int):
        raise TypeError(f"scale must be a number or None, got {scale!r}")
    elif not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    dtype = _served(qkv)
    if dtype is None:
        return _by_torch(qkv, scale)
    qkv = qkv.to(dtype)
    if torch.is_grad_enabled() and qkv.requires_grad:
        out: Tensor = _PackedAttention.apply(qkv.contiguous(), scale)
        return out
    with below_autograd():
        return _operator(qkv, scale)[0]


def _served(qkv: Tensor) -> torch.dtype | None:
    """What the operator should compute qkv in, if it serves it."""
    # Without its flash kernel torch would compute step by step, as those want who differentiate twice.
    dtype = cpu_kernel_dtype(qkv)
    if dtype is None or not torch.backends.cuda.flash_sdp_enabled():
        return None
    module: Any = loader.CPU_MODULE
    return dtype if module.packed_attention_serves(qkv.shape[1], qkv.shape[4], dtype is torch.bfloat16) else None


def _by_torch(qkv: Tensor, scale: float) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)


class _PackedAttention(torch.autograd.Function):
    """The operator's autograd, for eager code only."""

    @staticmethod
    def forward(ctx, qkv: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        with below_autograd():
            out, logsumexp = _operator(qkv, scale)
        ctx.set_materialize_grads(False)
        ctx.scale = scale
        ctx.save_for_backward(qkv, logsumexp)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor | None):  # type: ignore[no-untyped-def]
        if grad is None:
            return None, None
        with below_autograd():
            grad_qkv: Tensor = _backward_operator(grad, *ctx.saved_tensors, ctx.scale)
        return differentiable_once(grad_qkv, "packed_attention"), None
