"""The stochastic adapter: a small bottleneck beside a frozen branch of a transformer block."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from puma_plugin.models.arguments import require_bool, require_choice, require_float, require_generator, require_int
from puma_plugin.ops import stochastic_adapter

INITS = ("default", "paper")


class StochasticAdapter(nn.Module):
    """``residual + branch + gate * scale * ReLU(tokens @ down) @ up``, skipped at random per sample in training.

    From arXiv 2309.08944. In training each sample draws its gate: 0 with probability ``drop``, else ``1 / (1 - drop)``.
    A sample with gate 0 passes untouched, forward and backward. In evaluation every gate is 1. Gates come from torch's
    default random number generator, so a seed fixes them and activation checkpointing draws the same ones again.

    Args:
        dim: C, width of the tokens.
        adapter_dim: r, width of the bottleneck.
        drop: p, the probability that a sample skips this adapter in training, in [0, 1).
        scale: s, factor on the adapter's output.
        trainable_scale: make ``scale`` a parameter that starts at the given value.
        init: ``"default"``: ``down`` Kaiming uniform for C inputs, bound sqrt(6 / C). ``"paper"``: the bound of the
            authors' code, sqrt(3 / r). Both start with ``up`` = 0, so that the adapter adds nothing at first.
        generator: source of the initial values; torch's default one if None.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: an argument is outside what is said above.

    Shapes: ``residual``, ``tokens`` and ``branch`` (B, N, C), output (B, N, C) in the dtype of ``residual``; ``down``
    (C, r) and ``up`` (r, C), no biases.
    """

    down: nn.Parameter
    up: nn.Parameter
    scale: nn.Parameter | float
    # See AdaptedViT.given_gates.
    given_gate: Tensor | None = None

    def __init__(
        self,
        dim: int,
        adapter_dim: int,
        drop: float = 0.5,
        scale: float = 0.1,
        trainable_scale: bool = False,
        init: str = "default",
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = require_int("dim", dim, 1)
        self.adapter_dim = require_int("adapter_dim", adapter_dim, 1)
        self.drop = require_float("drop", drop, 0.0, 1.0)
        self.init = require_choice("init", init, INITS)
        scale = require_float("scale", scale)
        if require_bool("trainable_scale", trainable_scale):
            self.scale = nn.Parameter(torch.tensor(scale, device=device, dtype=dtype))
        else:
            self.scale = scale
        self.down = nn.Parameter(torch.empty(dim, adapter_dim, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.empty(adapter_dim, dim, device=device, dtype=dtype))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw ``down`` anew and set ``up`` to 0."""
        bound = math.sqrt(6 / self.dim) if self.init == "default" else math.sqrt(3 / self.adapter_dim)
        # Drawn on the CPU in float32, so that one seed gives one start on every device and in every dtype.
        start = torch.empty(self.dim, self.adapter_dim, device="cpu", dtype=torch.float32)
        start.uniform_(-bound, bound, generator=require_generator(generator))
        with torch.no_grad():
            self.down.copy_(start)
            self.up.zero_()

    def draw_gate(self, samples: int, device: torch.device) -> Tensor | None:
        """Gates (B,) float32 of one training pass; None where every gate is 1 (evaluation, or ``drop`` = 0)."""
        if not self.training or self.drop == 0.0:
            return None
        keep = 1.0 - self.drop
        if keep <= 0.0 or self.drop < 0.0:
            raise ValueError(f"drop of an adapter must be in [0, 1), got {self.drop}")
        # Not in place: under vmap each one may have gates of its own, and traced on a GPU the draws are boolean.
        return torch.empty(samples, dtype=torch.float32, device=device).bernoulli(keep) / keep

    def forward(
        self,
        residual: Tensor,
        tokens: Tensor,
        recompute: tuple[Any, ...] | None = None,
        branch: Tensor | None = None,
    ) -> Tensor:
        """Add the adapter's output for ``tokens`` to ``residual``, both (B, N, C).

        ``recompute``: function and inputs that give ``tokens`` again, so that the backward need not keep them;
        ``branch``: the frozen branch's output, added in the same pass over memory; for both see
        :func:`puma_plugin.ops.stochastic_adapter`.
        """
        gate = self.given_gate if self.training else None
        if gate is None:
            gate = self.draw_gate(residual.shape[0], residual.device)
        return stochastic_adapter(residual, tokens, self.down, self.up, gate, self.scale, recompute, branch)

    def extra_repr(self) -> str:
        if not isinstance(self.scale, Tensor):
            scale = f"{self.scale:g}"
        else:
            scale = f"{'?' if self.scale.is_meta else format(self.scale.item(), 'g')} (trainable)"
        return f"{self.dim} -> {self.adapter_dim} -> {self.dim}, drop={self.drop:g}, scale={scale}"
