"""The adapter's formula, written out once more in float64, and the cases it is compared in."""

import torch
from torch import Tensor

import puma_plugin.ops  # noqa: F401  (registers the operators)

OP = torch.ops.puma.stochastic_adapter.default
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = [  # of the residual, of the rest
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]
SHAPES = [
    (5, 7, 24, 6),
    (1, 1, 1, 1),
    (3, 13, 33, 5),
    (6, 1, 16, 16),
    (3, 300, 384, 8),
    (4, 37, 80, 48),
    (2, 9, 8, 20),
    (0, 4, 8, 2),
    (3, 0, 8, 2),
]


def gates(kind: str, samples: int, device: str) -> Tensor | None:
    if kind == "none":
        return None
    pattern = {"mixed": [0.0, 2.0, 2.0, 0.0, 2.0, 0.5], "all kept": [2.0], "none kept": [0.0]}[kind]
    return torch.tensor([pattern[i % len(pattern)] for i in range(samples)], device=device)


def by_hand(inputs: list[Tensor], gate: Tensor | None, scale: float, mask: Tensor | None = None) -> Tensor:
    """The formula in float64. With ``mask`` the ReLU passes what another run's ReLU passed, so that a value that rounds
    to either side of 0 counts as no difference."""
    residual, tokens, down, up = (t.double() for t in inputs)
    before = torch.einsum("bnc,cr->bnr", tokens, down)
    hidden = before.clamp(min=0) if mask is None else before * mask
    weight = torch.ones(len(residual), device=residual.device) if gate is None else gate
    return residual + torch.einsum("b,bnr,rc->bnc", weight.double() * scale, hidden, up)


def relu_mask(inputs: list[Tensor], gate: Tensor | None) -> Tensor:
    """(B, N, r): where the operator's own ReLU was active, from the activations it saves; 0 in dropped samples."""
    _, tokens, down, _ = inputs
    exact = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    hidden = OP(*inputs, gate if gate is None else gate.to(exact), None, 0.1, True)[1]
    mask = torch.zeros(*tokens.shape[:2], down.shape[1], dtype=torch.float64, device=tokens.device)
    kept = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device) if gate is None else gate != 0
    mask[kept] = (hidden[: int(kept.sum()) * tokens.shape[1]] > 0).double().view(int(kept.sum()), *mask.shape[1:])
    return mask
