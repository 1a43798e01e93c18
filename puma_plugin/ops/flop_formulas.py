"""How many operations torch's ``FlopCounterMode`` counts for the operators: those of their definitions.

As for torch's own operators these are dense counts, which follow from shapes alone: samples that a gate of 0 lets the
kernels skip are counted like the others.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

Shape = tuple[int, ...]


def _product(tokens: Shape, down: Shape) -> int:
    """Of (B*N, C) and (C, r), with a multiplication and an addition for each term."""
    return 2 * prod(tokens) * down[-1]


def _adapter(residual: Shape, tokens: Shape, down: Shape, *_: Any, **__: Any) -> int:
    return 2 * _product(tokens, down)


def _adapter_backward(
    grad: Shape,
    tokens: Shape,
    down: Shape,
    up: Shape,
    gate: Shape | None,
    hidden: Shape,
    prepared: Shape,
    scale: float,
    need_tokens: bool,
    need_weights: bool,
    **_: Any,
) -> int:
    # The hidden activation's gradient, from which follow that of the tokens and, with one more, those of both weights.
    return _product(tokens, down) * (1 + need_tokens + 2 * need_weights)


def _prompts(query: Shape, keys: Shape, attention: Shape, prompts: Shape, **_: Any) -> int:
    # The cosine's numerator, the squared norm in its denominator, and the weighted sum.
    return 2 * query[0] * (2 * prod(keys) + prod(prompts))


def _prompts_backward(
    grad_prompt: Shape | None,
    grad_weights: Shape | None,
    query: Shape,
    keys: Shape,
    attention: Shape,
    prompts: Shape,
    weights: Shape,
    inverse_norm: Shape,
    need_query: bool,
    **_: Any,
) -> int:
    of_sum = 0 if grad_prompt is None else 2 * prod(prompts)
    return 2 * query[0] * (of_sum + 2 * prod(keys) * (1 + need_query))


def register() -> None:
    """Tell torch where the operators are compiled; once more does nothing."""
    operators = torch.ops.puma
    formulas: dict[Any, Callable[..., int]] = {
        operators.stochastic_adapter: _adapter,
        operators.stochastic_adapter_inference: _adapter,
        operators.stochastic_adapter_backward: _adapter_backward,
        operators.match_prompts: _prompts,
        operators.match_prompts_backward: _prompts_backward,
    }
    for operator, formula in formulas.items():
        if operator not in flop_registry:  # where the package is loaded anew
            register_flop_formula(operator)(formula)
