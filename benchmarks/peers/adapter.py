"""The stochastic adapter, written in other ways.

All take residual (B, N, C), tokens (B, N, C), down (C, r), up (r, C), the scale and, as they need it, the gate (B,),
the kept samples' indices and each sample's rank (B,) among them, -1 where it is dropped. Without gate or indices all
are kept.
"""

import torch
from torch import Tensor


def authors(residual: Tensor, tokens: Tensor, down: Tensor, up: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """The form of the authors' code: every sample is computed, then multiplied in place by its gate.

    The product of an einsum is a view, so the in-place product makes autograd copy whole tensors in the backward.
    """
    hidden = torch.relu(torch.einsum("bnc,cr->bnr", tokens, down))
    branch = torch.einsum("bnr,rc->bnc", hidden, up)
    if gate is not None:
        branch.mul_(gate.to(branch.dtype)[:, None, None])
    return residual + branch * scale


def fixed(residual: Tensor, tokens: Tensor, down: Tensor, up: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """The same without the accident: gate, scale and sum in one ``addcmul``."""
    branch = torch.relu(tokens @ down) @ up
    if gate is None:
        return torch.add(residual, branch, alpha=scale)
    return torch.addcmul(residual, branch, (gate * scale).to(branch.dtype)[:, None, None])


def indexed(residual: Tensor, tokens: Tensor, down: Tensor, up: Tensor, kept: Tensor | None, scale: float) -> Tensor:
    """Dropping by index, as DINOv2 drops residual branches: compute the kept samples only, add them at their places.

    ``scale`` has to contain the kept samples' gate, ``1 / (1 - p)``.
    """
    if kept is None:
        return fixed(residual, tokens, down, up, None, scale)
    branch = torch.relu(tokens.index_select(0, kept) @ down) @ up
    total = torch.index_add(residual.flatten(1), 0, kept, branch.to(residual.dtype).flatten(1), alpha=scale)
    return total.view_as(residual)
