"""Python face of prompt matching: validation, autocast, fake kernels and autograd around the compiled operator."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from puma_plugin.ops import loader, reference
from puma_plugin.ops.eager import (
    below_autograd,
    explain,
    in_backward,
    is_autocast,
    is_plain,
    once_only,
    refuse_tangents,
    refuse_transforms,
    register_for_compiled_code,
    way_out,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Looked up once. They are called only where the library is loaded.
_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.match_prompts.default
_backward_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.match_prompts_backward.default


def match_prompts(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``cos(q * softmax(A_m), K_m)`` of the M prompts and their weighted sum (PUMA, conditional prompt pool).

    Computes in float32 at least: squares of a softmax over hundreds of features underflow in half types.

    Args:
        query: (B, C).
        keys: (M, C).
        attention: (M, C), logits; the softmax is over C.
        prompts: (M, L, C). All four share one dtype; under autocast they may differ.

    Returns:
        prompt (B, L, C) and weights (B, M), in the inputs' dtype; in float32 under autocast. Weights may be negative.
        Differentiable once, in reverse mode; for more use ``ops.reference.match_prompts``. A key of exactly 0 has
        weight 0 and no finite gradient.

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape or device that does not fit.
        NotImplementedError: forward-mode differentiation, or that of ``torch.func``.
    """
    device_type = "cpu" if query.is_cpu else query.device.type
    autocast = is_autocast(device_type)
    if autocast and query.dtype is not torch.float64:
        query, keys, attention, prompts = query.float(), keys.float(), attention.float(), prompts.float()
    dtype = query.dtype
    has_kernel = device_type in loader.KERNEL_DEVICES
    plain = is_plain()
    inputs = query, keys, attention, prompts
    if not (plain and has_kernel and (dtype is torch.float32 or dtype is torch.float64)):
        _validate(*inputs)
        if dtype in (torch.bfloat16, torch.float16):
            prompt, weights = match_prompts(query.float(), keys.float(), attention.float(), prompts.float())
            return prompt.to(dtype), weights.to(dtype)
        if not has_kernel:
            loader.report_fallback(device_type)
            with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
                return reference.match_prompts(*inputs)
    if forward_ad._current_level >= 0:
        refuse_tangents("match_prompts", *inputs)
    if not plain:
        refuse_transforms("match_prompts", *inputs)
        return _operator(*inputs)[:2]
    try:
        if torch.is_grad_enabled() and (
            query.requires_grad or keys.requires_grad or attention.requires_grad or prompts.requires_grad
        ):
            return _MatchPrompts.apply(*inputs)
        with below_autograd():
            return _operator(*inputs)[:2]
    except RuntimeError:
        explain(_validate, *inputs)
        raise


def _validate(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> None:
    if query.dim() != 2 or query.shape[1] < 1:
        raise ValueError(f"query must have shape (B, C) with C >= 1, got {tuple(query.shape)}")
    width = query.shape[1]
    if keys.dim() != 2 or keys.shape[0] < 1 or keys.shape[1] != width:
        raise ValueError(f"keys must have shape (M, C) with M >= 1 and C = {width}, got {tuple(keys.shape)}")
    if attention.shape != keys.shape:
        raise ValueError(f"attention must have keys' shape {tuple(keys.shape)}, got {tuple(attention.shape)}")
    if prompts.dim() != 3 or prompts.shape[0] != keys.shape[0] or prompts.shape[1] < 1 or prompts.shape[2] != width:
        raise ValueError(
            f"prompts must have shape (M, L, C) with M = {keys.shape[0]}, L >= 1 and C = {width}, "
            f"got {tuple(prompts.shape)}"
        )
    dtype = query.dtype
    if dtype not in DTYPES:
        raise TypeError(f"query must be float32, float64, bfloat16 or float16, got {dtype}")
    if keys.dtype != dtype or attention.dtype != dtype or prompts.dtype != dtype:
        raise TypeError(
            f"keys, attention and prompts must have query's dtype {dtype}, got {keys.dtype}, {attention.dtype} and "
            f"{prompts.dtype}; cast them, or run under torch.autocast"
        )
    device = query.device
    if keys.device != device or attention.device != device or prompts.device != device:
        raise ValueError(
            f"all tensors must be on query's device {device}, got keys on {keys.device}, "
            f"attention on {attention.device}, prompts on {prompts.device}"
        )


def _fake_forward(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _validate(query, keys, attention, prompts)
    samples, pool = query.shape[0], keys.shape[0]
    return (
        query.new_empty((samples, *prompts.shape[1:])),
        query.new_empty((samples, pool)),
        query.new_empty((samples, pool)),
    )


def _fake_backward(
    grad_prompt: Tensor | None,
    grad_weights: Tensor | None,
    query: Tensor,
    keys: Tensor,
    attention: Tensor,
    prompts: Tensor,
    weights: Tensor,
    inverse_norm: Tensor,
    need_query: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        query.new_empty(query.shape if need_query else (0,)),
        keys.new_empty(keys.shape),
        attention.new_empty(attention.shape),
        prompts.new_empty(prompts.shape),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's calling convention
    _, weights, inverse_norm = output
    ctx.mark_non_differentiable(inverse_norm)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, weights, inverse_norm)


def _gradients(  # type: ignore[no-untyped-def]
    ctx, grad_prompt: Tensor | None, grad_weights: Tensor | None, grad_inverse_norm: None = None
):
    if grad_prompt is None and grad_weights is None:
        return None, None, None, None
    need_query, need_keys, need_attention, need_prompts = ctx.needs_input_grad
    query, keys, attention, prompts = _backward_operator(grad_prompt, grad_weights, *ctx.saved_tensors, need_query)
    return (
        query if need_query else None,
        keys if need_keys else None,
        attention if need_attention else None,
        prompts if need_prompts else None,
    )


class _MatchPrompts(torch.autograd.Function):
    """The operator's autograd for eager code, see `eager`."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            prompt, weights, inverse_norm = _operator(query, keys, attention, prompts)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, keys, attention, prompts, weights, inverse_norm)
        return prompt, weights

    @staticmethod
    def backward(ctx, grad_prompt: Tensor | None, grad_weights: Tensor | None):  # type: ignore[no-untyped-def]
        with in_backward():
            return _gradients(ctx, grad_prompt, grad_weights)


if loader.CPU_LIBRARY.loaded:
    register_for_compiled_code(
        "match_prompts",
        fake=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_gradients,
        refusal=once_only("match_prompts", way_out("match_prompts")),
    )
