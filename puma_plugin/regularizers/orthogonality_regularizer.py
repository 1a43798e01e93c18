"""Penalty on rows that are not orthonormal."""

from typing import Any

import torch
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor


class OrthogonalityRegularizer(BaseRegularizer):
    """mean((x x^T - I)^2) of x (n, d): 0 exactly if the rows are orthonormal.

    The penalty that PUMA puts on the keys, attention logits and prompts of its pool (arXiv 2309.08944). As a pml
    regularizer it works as ``weight_regularizer`` or ``embedding_regularizer`` of any pml loss. Computed in float32 at
    least. For n > d the (n, n) matrix is never built.
    """

    def compute_loss(self, x: Tensor) -> dict[str, dict[str, Any]]:
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(
                f"x must have shape (n, d) with n >= 1, got {tuple(x.shape)}; flatten prompts (M, L, C) to (M, L * C)"
            )
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(torch.promote_types(x.dtype, torch.float32))
            return {"loss": {"losses": _penalty(rows), "indices": None, "reduction_type": "already_reduced"}}


def _penalty(x: Tensor) -> Tensor:
    n, d = x.shape
    if n <= d:
        return (x @ x.t() - torch.eye(n, dtype=x.dtype, device=x.device)).square().mean()
    # |x x^T - I|^2 = |x^T x|^2 - 2 |x|^2 + n. No harmful cancellation: with n > d the value is at least n - d.
    return ((x.t() @ x).square().sum() - 2 * x.square().sum() + n) / n**2
