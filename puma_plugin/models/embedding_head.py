"""The embedding head: what pytorch-metric-learning calls the embedder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puma_plugin.models.arguments import require_int


class EmbeddingHead(nn.Module):
    """Linear layer with bias, then L2 normalisation (arXiv 2309.08944).

    Args:
        in_features: C, width of the trunk's features.
        embedding_size: D.

    Raises:
        TypeError, ValueError: a size is not a positive int.
    """

    def __init__(self, in_features: int, embedding_size: int) -> None:
        super().__init__()
        self.in_features = require_int("in_features", in_features, 1)
        self.embedding_size = require_int("embedding_size", embedding_size, 1)
        self.linear = nn.Linear(in_features, embedding_size)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C) to embeddings (B, D) of length 1, in float32 at least (also under autocast)."""
        projected = self.linear(features)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)
