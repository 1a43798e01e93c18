"""The conditional prompt pool: prompt tokens chosen by what the image looks like."""

import torch
from torch import Tensor, nn

from puma_plugin.models.adapter import INITS
from puma_plugin.models.arguments import require_bool, require_choice, require_generator, require_int
from puma_plugin.models.orthogonality import orthogonality_penalty
from puma_plugin.ops import match_prompts

# The authors pass the weights through a BatchNorm1d without affine part whose statistics (0, 1) are never updated.
PAPER_BATCHNORM = (1.0 + 1e-5) ** -0.5


class PromptPool(nn.Module):
    """M prompts of L tokens, each with a key and attention logits (arXiv 2309.08944, "Conditional prompt pool").

    The weight of prompt m for query q is ``cos(q * softmax(attention[m]), keys[m])``; the prompt of a sample is the
    weighted sum of all M. Weights may be negative and are not normalised over m.

    Args:
        dim: C, width of tokens and query.
        pool_size: M.
        prompt_length: L.
        init: ``"default"``: keys, logits and the M flattened prompts each orthogonal. ``"paper"``: as the authors
            start, one orthogonal (L, C) prompt copied M times.
        paper_batchnorm: multiply the weights by 0.999995 as the authors' code does, to compare with it exactly.
        generator: source of the initial values; torch's default one if None.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: an argument is outside what is said above.
    """

    prompts: nn.Parameter
    keys: nn.Parameter
    attention: nn.Parameter

    def __init__(
        self,
        dim: int,
        pool_size: int = 20,
        prompt_length: int = 8,
        init: str = "default",
        paper_batchnorm: bool = False,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = require_int("dim", dim, 1)
        self.pool_size = require_int("pool_size", pool_size, 1)
        self.prompt_length = require_int("prompt_length", prompt_length, 1)
        self.init = require_choice("init", init, INITS)
        self.paper_batchnorm = require_bool("paper_batchnorm", paper_batchnorm)
        self.prompts = nn.Parameter(torch.empty(pool_size, prompt_length, dim, device=device, dtype=dtype))
        self.keys = nn.Parameter(torch.empty(pool_size, dim, device=device, dtype=dtype))
        self.attention = nn.Parameter(torch.empty(pool_size, dim, device=device, dtype=dtype))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw prompts, keys and attention logits anew."""
        size, length, dim = self.pool_size, self.prompt_length, self.dim
        require_generator(generator)

        def orthogonal(rows: int, columns: int) -> Tensor:
            # On the CPU in float32, so that one seed gives one start on every device and in every dtype.
            start = torch.empty(rows, columns, device="cpu", dtype=torch.float32)
            return nn.init.orthogonal_(start, generator=generator)

        with torch.no_grad():
            self.keys.copy_(orthogonal(size, dim))
            self.attention.copy_(orthogonal(size, dim))
            if self.init == "default":
                self.prompts.copy_(orthogonal(size, length * dim).view(size, length, dim))
            else:
                self.prompts.copy_(orthogonal(length, dim).expand(size, length, dim))

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt (B, L, C) and weights (B, M) for a query (B, C)."""
        prompt, weights = match_prompts(query.to(self.keys.dtype), self.keys, self.attention, self.prompts)
        if self.paper_batchnorm:
            return prompt * PAPER_BATCHNORM, weights * PAPER_BATCHNORM
        return prompt, weights

    def penalty(self, weight: float = 1e-6) -> Tensor:
        """``weight`` times the sum of `orthogonality_penalty` of keys, logits and prompts (M, L C), a scalar."""
        tables = (self.keys, self.attention, self.prompts.flatten(1))
        of_keys, of_attention, of_prompts = (orthogonality_penalty(table) for table in tables)
        return weight * (of_keys + of_attention + of_prompts)

    def extra_repr(self) -> str:
        text = f"{self.pool_size} prompts of {self.prompt_length} x {self.dim}"
        return text + ", paper_batchnorm=True" if self.paper_batchnorm else text
