"""Whether each of several processes draws batches of its own."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from puma_plugin.utils.distributed import world_size

# Fewer positions than these may be the same by chance.
_ENOUGH = 8


def have_own_batches(drawn: Sequence[Any], batch: Any, sampler: object, device: torch.device) -> bool:
    """Compare what the processes have drawn so far. All of them must call it, after the same batch.

    Args:
        drawn: positions of the items of this process' batches, in order.
        batch: the last one, as it was loaded: where each process has data of its own, equal positions are other items.
        sampler: that they come from.
        device: on which the processes talk with each other.

    Returns:
        False if some drew the same, but so little that it may be chance: ask again after the next batch.

    Raises:
        ValueError: in every process, if some drew the same.
    """
    total = hashlib.blake2b(repr(list(drawn)).encode(), digest_size=7)  # fits into an int64
    for leaf in tree_leaves(batch):
        tensor = leaf.detach().cpu().contiguous().flatten().view(torch.uint8) if isinstance(leaf, Tensor) else None
        total.update(repr(leaf).encode() if tensor is None else tensor.numpy().tobytes())
    mine = torch.tensor([len(drawn), int.from_bytes(total.digest(), "big")], device=device)
    facts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(facts, mine)
    ranks: dict[tuple[int, int], list[int]] = {}
    for rank, (count, number) in enumerate(torch.stack(facts).tolist()):
        ranks.setdefault((count, number), []).append(rank)
    (count, _), alike = max(ranks.items(), key=lambda item: len(item[1]))
    if len(alike) > 1 and count >= _ENOUGH:
        raise ValueError(
            f"ranks {alike} draw the same items from {type(sampler).__name__}, and the loss would see each of them "
            f"{len(alike)} times: use MultiDistributionSampler(labels, batch_size, m=...), which shares each batch out "
            "by torch.distributed's rank unless it is given another one, or torch's DistributedSampler; or seed what "
            "the sampler draws from by the rank"
        )
    return len(alike) == 1
