"""A GELU MLP whose weights take no gradient, compiled for float32 on CPUs with vector units."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from puma_plugin.ops import loader
from puma_plugin.ops.eager import (
    below_autograd,
    cpu_kernel_dtype,
    differentiable_once,
    is_plain,
    once_only,
    register_for_compiled_code,
)

# Below that, laying out the weights takes longer than the products gain.
FEWEST_ROWS = 512
MOST_DIMENSIONS = 5  # of what the operator makes

# Looked up once. They are called only where the library is loaded.
_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.frozen_mlp.default
_backward_operator: Any = loader.CPU_LIBRARY.loaded and torch.ops.puma.frozen_mlp_backward.default
_LIMITS: dict[str, int] = loader.CPU_MODULE.frozen_mlp_limits() if loader.CPU_MODULE else {"width_multiple": 0}


def frozen_mlp(input: Tensor, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None) -> Tensor:
    """``GELU(input @ fc1.T + bias1) @ fc2.T + bias2``, the MLP of a transformer block, with the exact (erf) GELU.

    In float32 on a CPU with AVX2 or AVX-512, from 512 rows on, blocks of rows go through both products at once; in code
    that was compiled for any number of rows, always. For the backward it keeps GELU's slopes in 24 bits of fixed point
    (as exact as float32 is around 1) instead of the hidden layer, and nothing else that large is ever in memory.
    Everything else is computed by torch's own operators: other dtypes and devices, few rows, under autocast,
    ``torch.export``, functorch, forward mode or a dispatch mode, and wherever torch may compute float32 products with
    less (compiled code: might while it was compiled).

    Args:
        input: (..., in).
        fc1: (hidden, in), as ``torch.nn.Linear`` keeps it; like the following without gradient.
        bias1: (hidden,) or None.
        fc2: (out, hidden).
        bias2: (out,) or None.

    Returns:
        (..., out), differentiable with respect to input; where it was computed by the kernel, once.

    Raises:
        TypeError: a weight or bias requires a gradient.
        ValueError: shapes that do not fit.
    """
    _validate(input, fc1, bias1, fc2, bias2)
    if not _has_kernel(input, fc1, bias1, fc2, bias2):
        return F.linear(F.gelu(F.linear(input, fc1, bias1)), fc2, bias2)
    needs_slopes = torch.is_grad_enabled() and input.requires_grad
    if not is_plain():
        return _operator(input, fc1, bias1, fc2, bias2, needs_slopes)[0]
    if needs_slopes:
        output: Tensor = _FrozenMlp.apply(input, fc1, bias1, fc2, bias2)
        return output
    with below_autograd():
        return _operator(input, fc1, bias1, fc2, bias2, False)[0]


def _validate(input: Tensor, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None) -> None:
    if fc1.dim() != 2 or input.dim() < 1 or input.shape[-1] != fc1.shape[1]:
        raise ValueError(
            f"fc1 must have shape (hidden, in) with input's last dimension as in, got fc1 {tuple(fc1.shape)} and input "
            f"{tuple(input.shape)}"
        )
    if fc2.dim() != 2 or fc2.shape[1] != fc1.shape[0]:
        raise ValueError(f"fc2 must have shape (out, hidden) with hidden = {fc1.shape[0]}, got {tuple(fc2.shape)}")
    for name, bias, weight in (("bias1", bias1, fc1), ("bias2", bias2, fc2)):
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{name} must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, parameter in (("fc1", fc1), ("bias1", bias1), ("fc2", fc2), ("bias2", bias2)):
        if parameter is not None and parameter.requires_grad:
            raise TypeError(f"{name} takes no gradient here, got requires_grad=True; use torch.nn.functional.linear")


def _has_kernel(input: Tensor, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None) -> bool:
    if cpu_kernel_dtype(input, fc1, bias1, fc2, bias2) is not torch.float32 or input.dim() > MOST_DIMENSIONS:
        return False
    return serves(fc1.shape[1], fc1.shape[0], fc2.shape[0]) and not _has_few_rows(input)


def _has_few_rows(input: Tensor) -> bool:
    few = input.numel() < FEWEST_ROWS * input.shape[-1]
    if not torch.compiler.is_compiling():
        return few
    # Code for any number of rows must not be bound to some: with a range that was promised for it, or a number that
    # depends on data, it could not be compiled then.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(few)


def serves(in_features: int, hidden_features: int, out_features: int) -> bool:
    """Whether there are kernels for these widths here."""
    multiple = _LIMITS["width_multiple"]
    return multiple > 0 and all(
        width > 0 and width % multiple == 0 for width in (in_features, hidden_features, out_features)
    )


class _FrozenMlp(torch.autograd.Function):
    """The kernels' autograd for eager code, see `eager`."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, input: Tensor, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None
    ) -> Tensor:
        with below_autograd():
            output, slopes = _operator(input, fc1, bias1, fc2, bias2, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(slopes, fc1, fc2)
        return output

    @staticmethod
    def backward(ctx, grad: Tensor | None):  # type: ignore[no-untyped-def]
        if grad is None:
            return (None,) * 5
        with below_autograd():
            grad_input: Tensor = _backward_operator(grad, *ctx.saved_tensors)
        return differentiable_once(grad_input, "frozen_mlp"), None, None, None, None


def _fake_forward(
    input: Tensor, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None, save_slopes: bool
) -> tuple[Tensor, Tensor]:
    multiple = _LIMITS["slope_columns"]
    slopes = (
        input.numel() // input.shape[-1] + _LIMITS["more_slope_rows"] if save_slopes else 0,
        (fc1.shape[0] + multiple - 1) // multiple * multiple,
        _LIMITS["slope_bytes"],
    )
    return input.new_empty((*input.shape[:-1], fc2.shape[0])), input.new_empty(slopes, dtype=torch.uint8)


def _fake_backward(grad: Tensor, slopes: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], fc1.shape[1]))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's calling convention
    _, fc1, _, fc2, _, _ = inputs
    _, slopes = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(slopes, fc1, fc2)


def _backward(ctx, grad: Tensor | None, _: None):  # type: ignore[no-untyped-def]
    return (None if grad is None else _backward_operator(grad, *ctx.saved_tensors)), *[None] * 5


if loader.CPU_LIBRARY.loaded:
    register_for_compiled_code(
        "frozen_mlp",
        fake=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
        refusal=once_only("frozen_mlp"),
    )
