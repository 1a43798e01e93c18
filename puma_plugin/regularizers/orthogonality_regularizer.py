"""Penalty on rows that are not orthonormal."""

from typing import Any

from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor

from puma_plugin.models.orthogonality import orthogonality_penalty


class OrthogonalityRegularizer(BaseRegularizer):
    """mean((x x^T - I)^2) of x (n, d): 0 exactly if the rows are orthonormal.

    The penalty that PUMA puts on the keys, attention logits and prompts of its pool (arXiv 2309.08944). As a pml
    regularizer it works as ``weight_regularizer`` or ``embedding_regularizer`` of any pml loss. Computed in float32 at
    least. For n > d the (n, n) matrix is never built.

    Raises:
        ValueError: when called with x of another shape, or without rows.
    """

    def compute_loss(self, x: Tensor) -> dict[str, dict[str, Any]]:
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(
                f"x must have shape (n, d) with n >= 1, got {tuple(x.shape)}; flatten prompts (M, L, C) to (M, L * C)"
            )
        return {"loss": {"losses": orthogonality_penalty(x), "indices": None, "reduction_type": "already_reduced"}}
