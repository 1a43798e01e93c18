"""Self-attention over packed queries, keys and values: validation and autograd around the compiled operator."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from puma_plugin.ops import loader
from puma_plugin.ops.eager import (
    asked_when_compiled,
    below_autograd,
    cpu_kernel_dtype,
    differentiable_once,
    is_plain,
    once_only,
    register_for_compiled_code,
)

# Looked up once. They are called only where the library is loaded.
_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.packed_attention.default
_backward_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.packed_attention_backward.default
_LIMITS: dict[str, int] = loader.CPU_MODULE.packed_attention_limits() if loader.CPU_MODULE else {"most_tokens": 0}


def packed_attention(qkv: Tensor, scale: float | None = None) -> Tensor:
    """``softmax(scale * q @ k^T) @ v`` of each head, of q, k and v as one linear layer gives them.

    On the CPU, in float32 or bfloat16 (also autocast's), it runs a compiled operator, which keeps for the backward
    only qkv and one number per query and head, and whose gradient comes in qkv's layout. It computes in float32, and
    serves D a multiple of 16 up to 128, N up to 4096 and processors with AVX2; bfloat16 not on those with
    AMX, whose matrix unit torch uses. Everything else goes to
    ``torch.nn.functional.scaled_dot_product_attention``, the same function: other dtypes and devices,
    ``torch.export``, ``torch.func``, forward mode, dispatch modes, and ``sdpa_kernel`` without the flash backend (of
    compiled code, around its first call).

    Args:
        qkv: (B, N, 3, H, D), floating point: queries, keys and values of N tokens and H heads.
        scale: a finite number; None means ``D ** -0.5``.

    Returns:
        (B, N, H * D), in qkv's dtype; under autocast in its, but for float64. Where the operator runs, differentiable
        once.

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
    dtype = _kernel_dtype(qkv)
    if dtype is None:
        return _by_torch(qkv, scale)
    if qkv.dtype is not dtype:
        qkv = qkv.to(dtype)
    if not is_plain():
        return _operator(qkv, scale)[0]
    if torch.is_grad_enabled() and qkv.requires_grad:
        out: Tensor = _PackedAttention.apply(qkv.contiguous(), scale)
        return out
    with below_autograd():
        return _operator(qkv, scale)[0]


def _kernel_dtype(qkv: Tensor) -> torch.dtype | None:
    """What the operator should compute qkv in; None where torch should."""
    dtype = cpu_kernel_dtype(qkv)
    return dtype if dtype is not None and serves(qkv.shape[1], qkv.shape[4], dtype) and _has_flash() else None


def serves(tokens: int, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the operator should run for this N and D, on the CPU in float32 or bfloat16."""
    return (
        1 <= tokens <= _LIMITS["most_tokens"]
        and head_dim <= _LIMITS["most_head_dim"]
        and head_dim % _LIMITS["head_dim_multiple"] == 0
        and (dtype is torch.float32 or bool(_LIMITS["bfloat16"]))
    )


@asked_when_compiled
def _has_flash() -> bool:
    """Without its flash kernel torch would compute step by step, as those want who differentiate twice."""
    return torch.backends.cuda.flash_sdp_enabled()


def _by_torch(qkv: Tensor, scale: float) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)


class _PackedAttention(torch.autograd.Function):
    """The operator's autograd for eager code, see `eager`."""

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


def _fake_forward(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    samples, tokens, _, heads, head_dim = qkv.shape
    return (
        qkv.new_empty((samples, tokens, heads * head_dim)),
        qkv.new_empty((samples, heads, tokens), dtype=torch.float32),
    )


def _fake_backward(grad: Tensor, qkv: Tensor, logsumexp: Tensor, scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's calling convention
    qkv, ctx.scale = inputs
    _, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, logsumexp)


def _backward(ctx, grad: Tensor | None, _: None):  # type: ignore[no-untyped-def]
    return (None if grad is None else _backward_operator(grad, *ctx.saved_tensors, ctx.scale)), None


if loader.CPU_LIBRARY.loaded:
    register_for_compiled_code(
        "packed_attention",
        fake=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
        refusal=once_only("packed_attention"),
    )
