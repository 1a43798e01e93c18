"""Python face of the stochastic adapter: validation, autocast, fake kernels, autograd around the compiled operator."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
    is_recorded,
    once_only,
    refuse_tangents,
    refuse_transforms,
    register_for_compiled_code,
    way_out,
    without_frame,
)

# A function, and the tensors of which it gives the tokens once more.
Recompute = tuple[Any, ...]
_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)

# Looked up once. They are called only where the library is loaded.
_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.stochastic_adapter.default
_inference_operator: Any = loader.CPU_LIBRARY.loaded and without_frame(
    torch.ops.puma.stochastic_adapter_inference.default
)
_backward_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.stochastic_adapter_backward.default


def stochastic_adapter(
    residual: Tensor,
    tokens: Tensor,
    down: Tensor,
    up: Tensor,
    gate: Tensor | None = None,
    scale: float | Tensor = 0.1,
    recompute: Recompute | None = None,
    branch: Tensor | None = None,
) -> Tensor:
    """``residual + branch + gate * scale * ReLU(tokens @ down) @ up`` (PUMA, arXiv 2309.08944, stochastic adapter).

    Samples whose gate is 0 are skipped, forward and backward, not multiplied by 0: for them the result is
    ``residual + branch``. Under autocast, tokens are cast to autocast's dtype, down and up are rounded to it; residual
    and branch keep theirs. Sums of half types run in float32 and are rounded once, where ``residual + branch`` first
    would round twice.

    Args:
        residual: (B, N, C), what the adapter's output is added to; its dtype is the result's. Either the dtype of
            tokens, or float32 next to bfloat16 or float16 tokens.
        tokens: (B, N, C), the normalised tokens.
        down: (C, r), same dtype as tokens; or float32 next to bfloat16 or float16 tokens: then it is rounded to their
            dtype where it is used. Its gradient is float32 then, though not everywhere more exact than tokens' dtype.
        up: (r, C), same dtype as down.
        gate: (B,), floating, one factor per sample: Bernoulli(1-p)/(1-p) in training. None means 1 everywhere. Takes no
            gradient.
        scale: a finite number, or a tensor with one element that may be trained. To ``torch.compile`` a number is a
            constant, as to torch's own operators: each new one is compiled again, the values of a tensor or gate not.
        recompute: ``(function, *inputs)`` with ``tokens = function(*inputs)``. The backward then keeps the inputs, not
            the tokens, and calls the function once more: saves memory where they are kept anyway, as a layer norm does.
            All that may have changed by then must be among the inputs. Compiled code decides by itself what to keep and
            ignores this.
        branch: (B, N, C), the output of the frozen branch beside the adapter, added in the same pass over memory. Its
            dtype is residual's, or one whose values residual's holds exactly (a half type next to float32).

    Returns:
        (B, N, C), contiguous, in residual's dtype. Never shares memory with an input. Differentiable once, in reverse
        mode; for second derivatives, forward mode or ``torch.func`` use ``ops.reference.stochastic_adapter``.

    Raises:
        TypeError: a dtype that does not fit, a scale that is no number, or a gate that requires a gradient.
        ValueError: a shape or device that does not fit, or a scale that is not finite.
        NotImplementedError: forward-mode differentiation, or that of ``torch.func``.
    """
    device_type = "cpu" if residual.is_cpu else residual.device.type  # the latter alone takes 0.3 us
    if not isinstance(scale, float) or scale - scale != 0:
        up, scale = _resolve_scale(up, scale)
    if is_autocast(device_type) and tokens.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        tokens = tokens.to(dtype)
        if down.dtype is not torch.float32 or up.dtype is not torch.float32:
            down, up = down.to(dtype), up.to(dtype)
    dtype = tokens.dtype
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    has_kernel = device_type in loader.KERNEL_DEVICES
    plain = is_plain()
    if not (
        plain
        and has_kernel
        and (gate is None or (gate.dtype is exact and not gate.requires_grad))
        and (branch is None or branch.dtype is dtype or branch.dtype is residual.dtype)
    ):
        _validate(residual, tokens, down, up, gate, branch)
        if gate is not None:
            gate = gate.to(exact)
        if branch is not None and branch.dtype is not dtype:
            branch = branch.to(residual.dtype)
        if not has_kernel:
            loader.report_fallback(device_type)
            return reference.stochastic_adapter(residual, tokens, down, up, gate, scale, branch)
    if forward_ad._current_level >= 0:
        refuse_tangents("stochastic_adapter", residual, tokens, down, up, gate, branch)
    with_grad = torch.is_grad_enabled()
    save_hidden = with_grad and (tokens.requires_grad or down.requires_grad or up.requires_grad)
    if not plain:
        refuse_transforms("stochastic_adapter", residual, tokens, down, up, branch)
        return _operator(residual, tokens, down, up, gate, branch, scale, save_hidden)[0]
    try:
        if save_hidden or (with_grad and (residual.requires_grad or (branch is not None and branch.requires_grad))):
            out: Tensor = _StochasticAdapter.apply(
                residual, tokens, down, up, gate, branch, scale, save_hidden, recompute
            )
            return out
        if not is_recorded():
            return _inference_operator(residual, tokens, down, up, gate, branch, scale)
        # What records the operator may want to differentiate it in residual or branch later.
        with below_autograd():
            return _operator(residual, tokens, down, up, gate, branch, scale, False)[0]
    except RuntimeError:
        explain(_validate, residual, tokens, down, up, gate, branch)
        raise


def _resolve_scale(up: Tensor, scale: float | Tensor) -> tuple[Tensor, float]:
    """A tensor goes into ``up``, so that autograd outside the kernel gives it its gradient."""
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            raise ValueError(f"scale must be a number or a tensor with one element, got shape {tuple(scale.shape)}")
        return up * scale.reshape(()).to(up.dtype), 1.0
    if isinstance(scale, bool) or not isinstance(scale, float | int):
        raise TypeError(f"scale must be a number or a tensor with one element, got {scale!r}")
    if scale - scale != 0:  # infinite or NaN; unlike math.isfinite this can be traced
        raise ValueError(f"scale must be finite, got {scale}")
    return up, scale


def _validate(
    residual: Tensor, tokens: Tensor, down: Tensor, up: Tensor, gate: Tensor | None, branch: Tensor | None
) -> None:
    device, shape, down_shape, up_shape = residual.device, residual.shape, down.shape, up.shape
    if len(shape) != 3:
        raise ValueError(f"residual must have shape (B, N, C), got {tuple(shape)}")
    samples, _, width = shape
    if tokens.shape != shape:
        raise ValueError(f"tokens must have residual's shape {tuple(shape)}, got {tuple(tokens.shape)}")
    if len(down_shape) != 2 or down_shape[0] != width:
        raise ValueError(f"down must have shape (C, r) with C = {width}, got {tuple(down_shape)}")
    rank = down_shape[1]
    if width < 1 or rank < 1:
        raise ValueError(f"C and r must be at least 1, got down of shape {tuple(down_shape)}")
    if len(up_shape) != 2 or up_shape[0] != rank or up_shape[1] != width:
        raise ValueError(f"up must have shape (r, C) = {(rank, width)}, got {tuple(up_shape)}")
    dtype = tokens.dtype
    if dtype not in DTYPES:
        raise TypeError(f"tokens must be float32, float64, bfloat16 or float16, got {dtype}")
    weights = down.dtype
    if up.dtype is not weights or not (weights is dtype or (weights is torch.float32 and dtype in HALF_DTYPES)):
        raise TypeError(
            f"down and up must have tokens' dtype {dtype}, or both float32 next to half types, got {weights} and "
            f"{up.dtype}; cast them, or run under torch.autocast"
        )
    if residual.dtype is not dtype and not (residual.dtype is torch.float32 and dtype in HALF_DTYPES):
        raise TypeError(
            f"residual must have tokens' dtype {dtype}, or float32 next to half types, got {residual.dtype}; cast it"
        )
    if tokens.device != device or down.device != device or up.device != device:
        raise ValueError(
            f"all tensors must be on residual's device {device}, got tokens on {tokens.device}, down on {down.device}, "
            f"up on {up.device}"
        )
    if branch is not None:
        _validate_branch(residual, branch)
    if gate is None:
        return
    if gate.shape != (samples,):
        raise ValueError(f"gate must have shape (B,) with B = {samples}, got {tuple(gate.shape)}")
    if not gate.dtype.is_floating_point:
        raise TypeError(f"gate must be floating point (0 drops a sample, 1/(1-p) keeps it), got {gate.dtype}")
    if gate.device != device:
        raise ValueError(f"gate must be on residual's device {device}, got {gate.device}")
    if gate.requires_grad:
        raise TypeError("gate takes no gradient, got a gate with requires_grad=True; pass gate.detach()")


def _validate_branch(residual: Tensor, branch: Tensor) -> None:
    if branch.shape != residual.shape:
        raise ValueError(f"branch must have residual's shape {tuple(residual.shape)}, got {tuple(branch.shape)}")
    if branch.device != residual.device:
        raise ValueError(f"branch must be on residual's device {residual.device}, got {branch.device}")
    if branch.dtype not in DTYPES or torch.promote_types(branch.dtype, residual.dtype) is not residual.dtype:
        raise TypeError(
            f"branch must have residual's dtype {residual.dtype} or a narrower floating-point one, got {branch.dtype}; "
            "cast it, or pass residual + branch as residual"
        )


def _fake_forward(
    residual: Tensor,
    tokens: Tensor,
    down: Tensor,
    up: Tensor,
    gate: Tensor | None,
    branch: Tensor | None,
    scale: float,
    save_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _validate(residual, tokens, down, up, gate, branch)
    rows = tokens.shape[0] * tokens.shape[1] if save_hidden else 0
    prepared = _prepared_bytes(tokens, down.shape[1]) if save_hidden and tokens.device.type == "cuda" else 0
    return (
        residual.new_empty(residual.shape),
        tokens.new_empty((rows, down.shape[1])),
        tokens.new_empty((prepared,), dtype=torch.uint8),
    )


def _fake_inference(*arguments: Any) -> Tensor:
    with_save_hidden = *arguments, False
    return _fake_forward(*with_save_hidden)[0]


def _prepared_bytes(tokens: Tensor, rank: int) -> int:
    """``prepared_bytes`` of csrc/cuda/sizes.h: what the forward on CUDA leaves to the backward besides ``hidden``."""
    samples, _, width = tokens.shape
    size = tokens.dtype.itemsize
    if size > 4 or not 1 <= rank <= 128 or width * size % 16 != 0 or not 1 <= width <= 1 << 20:
        return 0
    step = 128 // size
    packed_weights = 2 * (-(-width // step) * step) * (64 if rank <= 64 else 128) * size
    return packed_weights + 16 + 2 * (-(-samples // 4) * 16)


def _fake_backward(
    grad: Tensor,
    tokens: Tensor,
    down: Tensor,
    up: Tensor,
    gate: Tensor | None,
    hidden: Tensor,
    prepared: Tensor,
    scale: float,
    need_tokens: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = (0,)
    return (
        tokens.new_empty(tokens.shape if need_tokens else nothing),
        down.new_empty(down.shape if need_weights else nothing),
        up.new_empty(up.shape if need_weights else nothing),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's calling convention
    _, tokens, down, up, gate, branch, scale, save_hidden = inputs
    _, hidden, prepared = output
    ctx.mark_non_differentiable(hidden, prepared)
    ctx.set_materialize_grads(False)
    ctx.scale, ctx.save_hidden = scale, save_hidden
    ctx.branch_dtype = None if branch is None else branch.dtype
    ctx.save_for_backward(tokens, down, up, gate, hidden, prepared)


def _gradients(needed: Sequence[bool], grad: Tensor, saved: Sequence[Tensor | None], scale: float) -> _Gradients:
    """Of residual, tokens, down and up, as far as needed; `saved` is tokens, down, up, gate, hidden, prepared."""
    need_residual, need_tokens, need_down, need_up = needed[:4]
    grad_tokens = grad_down = grad_up = None
    if need_tokens or need_down or need_up:
        grad_tokens, grad_down, grad_up = _backward_operator(grad, *saved, scale, need_tokens, need_down or need_up)
    return (
        grad if need_residual else None,
        grad_tokens if need_tokens else None,
        grad_down if need_down else None,
        grad_up if need_up else None,
    )


def _backward(ctx, grad: Tensor | None, *_: None):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 8
    if any(ctx.needs_input_grad[1:4]) and not ctx.save_hidden:
        raise RuntimeError(
            "puma::stochastic_adapter was called with save_hidden=False, so it has no gradient here; call or record it "
            "with tokens or weights that require gradients"
        )
    gradients = _gradients(ctx.needs_input_grad, grad, ctx.saved_tensors, ctx.scale)
    return *gradients, None, _branch_gradient(ctx, grad), None, None


def _branch_gradient(ctx, grad: Tensor) -> Tensor | None:  # type: ignore[no-untyped-def]
    """That of residual, in branch's dtype; branch is argument 5 of the operator and of the eager function."""
    return grad.to(ctx.branch_dtype) if ctx.needs_input_grad[5] else None


def _autocast_as_before(device_type: str, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Autocast to ``dtype``, or none; there is none on meta tensors."""
    if device_type == "meta":
        return nullcontext()
    return torch.autocast(device_type, dtype, enabled=dtype is not None)


class _StochasticAdapter(torch.autograd.Function):
    """The operator's autograd for eager code, see `eager`; the same arguments and ``recompute``."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        residual: Tensor,
        tokens: Tensor,
        down: Tensor,
        up: Tensor,
        gate: Tensor | None,
        branch: Tensor | None,
        scale: float,
        save_hidden: bool,
        recompute: Recompute | None,
    ) -> Tensor:
        with below_autograd():
            out, hidden, prepared = _operator(residual, tokens, down, up, gate, branch, scale, save_hidden)
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.function = scale, None
        ctx.branch_dtype = None if branch is None else branch.dtype
        if save_hidden:
            kept: Sequence[Tensor | None] = (tokens,)
            if recompute is not None:
                ctx.function, *kept = recompute
                device_type = tokens.device.type
                ctx.autocast = None
                if is_autocast(device_type):
                    ctx.autocast = torch.get_autocast_dtype(device_type)
            ctx.save_for_backward(down, up, gate, hidden, prepared, *kept)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor | None):  # type: ignore[no-untyped-def]
        if grad is None:
            return (None,) * 9
        saved = ctx.saved_tensors  # asked for once, as checkpointing wants it
        if saved:
            down, up, gate, hidden, prepared, *kept = saved
            saved = kept[0], down, up, gate, hidden, prepared
        if ctx.function is not None:
            with torch.no_grad(), _autocast_as_before(down.device.type, ctx.autocast):
                tokens = ctx.function(*kept).to(hidden.dtype)  # hidden has the tokens' dtype
            if tokens.shape != grad.shape:
                raise ValueError(
                    f"recompute must give the tokens once more, of shape {tuple(grad.shape)}; its function returned "
                    f"{tuple(tokens.shape)}"
                )
            saved = tokens, *saved[1:]
        with in_backward():
            gradients = _gradients(ctx.needs_input_grad, grad, saved, ctx.scale)
        return *gradients, None, _branch_gradient(ctx, grad), None, None, None


if loader.CPU_LIBRARY.loaded:
    torch.library.register_fake("puma::stochastic_adapter_inference", _fake_inference)
    register_for_compiled_code(
        "stochastic_adapter",
        fake=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
        refusal=once_only("stochastic_adapter", way_out("stochastic_adapter")),
    )
