"""The penalty on the rows of PUMA's prompt pool."""

import torch
from torch import Tensor


def orthogonality_penalty(x: Tensor) -> Tensor:
    """``mean((x x^T - I)^2)`` of x (n, d), a scalar: 0 exactly if the rows are orthonormal (arXiv 2309.08944).

    Computed in float32 at least, also under autocast: in half precision the Gram matrix of a trained pool would be
    rounding error. For n > d the (n, n) matrix is never built.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        n, d = rows.shape
        if n <= d:
            return (rows @ rows.t() - torch.eye(n, dtype=rows.dtype, device=rows.device)).square().mean()
        # |x x^T - I|^2 = |x^T x|^2 - 2 |x|^2 + n. No harmful cancellation: with n > d the value is at least n - d.
        return ((rows.t() @ rows).square().sum() - 2 * rows.square().sum() + n) / n**2
