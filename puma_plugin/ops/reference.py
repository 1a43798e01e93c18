"""The two operators in plain PyTorch: the definition that every kernel is tested against.

Read these as the formulas. They also run where no kernel was compiled. One difference: the kernels never touch a sample
whose gate is 0, while the definition multiplies by the gate, so a NaN in the tokens of such a sample spreads here.
"""

import torch
from torch import Tensor


def stochastic_adapter(
    residual: Tensor,
    tokens: Tensor,
    down: Tensor,
    up: Tensor,
    gate: Tensor | None = None,
    scale: float = 0.1,
    branch: Tensor | None = None,
) -> Tensor:
    """``residual + branch + gate * scale * ReLU(tokens @ down) @ up``, a gate per sample (PUMA, "Stochastic adapter").

    Args:
        residual: (B, N, C), what the adapter's output is added to.
        tokens: (B, N, C), the normalised tokens that the frozen branch also reads.
        down: (C, r); like up rounded to the dtype of tokens, if it has another.
        up: (r, C).
        gate: (B,), or None for 1 everywhere (evaluation). 0 means: the sample passes untouched.
        scale: s of the paper, 0.1 there.
        branch: (B, N, C), the frozen branch's output, or None.
    """
    if branch is not None:
        residual = residual + branch
    added = torch.relu(tokens @ down.to(tokens.dtype)) @ up.to(tokens.dtype)
    factor = scale if gate is None else (gate.to(residual.dtype) * scale)[:, None, None]
    return residual + added.to(residual.dtype) * factor


def match_prompts(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``cos(q * softmax(A_m), K_m)`` of the M prompts and their weighted sum (PUMA, "Conditional prompt pool").

    The product q * softmax(A_m), of shape (B, M, C), is never built.

    Args:
        query: (B, C).
        keys: (M, C).
        attention: (M, C), logits; the softmax is over C.
        prompts: (M, L, C).

    Returns:
        prompt (B, L, C) and weights (B, M). Weights may be negative; there is no softmax over M.
    """
    focus = attention.softmax(dim=-1)
    unit_keys = keys / keys.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(keys.dtype).tiny)
    numerator = query @ (focus * unit_keys).T
    norm_squared = query.square() @ focus.square().T
    weights = numerator * norm_squared.clamp_min(torch.finfo(query.dtype).tiny).rsqrt()
    return torch.einsum("bm,mlc->blc", weights, prompts), weights
