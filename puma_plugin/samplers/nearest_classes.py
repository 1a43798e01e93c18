"""Which classes of a distribution are near each other, by their proxies."""

from typing import Any

import numpy as np
import torch

from puma_plugin.utils.arrays import IntArray


def nearest_classes(proxies: Any, distribution_of: IntArray, count: int, block_size: int = 1024) -> IntArray:
    """Return (C, count) the classes of the same distribution whose proxies are most similar (cosine), nearest first.

    Args:
        proxies: (C, D) tensor or array.
        distribution_of: (C,) distribution of each class; -1 for one that takes no part.
        count: how many; where a distribution has fewer others, -1 fills up.

    Raises:
        ValueError: another shape, NaN or infinity, or ``count`` < 1.
    """
    rows = torch.as_tensor(proxies).detach().float().cpu()
    if rows.ndim != 2 or len(rows) != len(distribution_of):
        raise ValueError(
            f"proxies must have shape ({len(distribution_of)}, D), one row per class number, got {tuple(rows.shape)}; "
            "for a pml loss with W of shape (D, classes) give loss.W.t()"
        )
    if not rows.isfinite().all():
        raise ValueError(f"proxies must be finite, row {int((~rows.isfinite()).any(dim=1).nonzero()[0])} is not")
    if count < 1:
        raise ValueError(f"neighbours must be at least 1, got {count}")
    rows = torch.nn.functional.normalize(rows, dim=1)
    nearest = np.full((len(rows), count), -1, dtype=np.int64)
    for d in np.unique(distribution_of[distribution_of >= 0]):
        mine = np.flatnonzero(distribution_of == d)
        gallery, found = rows[mine], min(count, len(mine) - 1)
        for start in range(0, len(mine), block_size):
            block = mine[start : start + block_size]
            similarity = rows[block] @ gallery.t()
            similarity[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
            nearest[block, :found] = mine[similarity.topk(found, dim=1).indices.numpy()]
    return nearest
