"""Whether each of several processes draws batches of its own."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from puma_plugin.utils.distributed import rank, world_size

# Fewer positions than these may be the same by chance.
_ENOUGH = 8


def have_own_batches(drawn: Sequence[Any], batch: Any, sampler: object, device: torch.device) -> bool:
    """Compare what the processes have drawn so far. All of them must call it, after the same batch.

    Args:
        drawn: positions of the items of this process' batches, in order.
        batch: the last one, as it was loaded: where each process has data of its own, equal positions are other items.
            Where only its images differ, they may be the same items in other crops: that is warned of.
        sampler: that they come from.
        device: on which the processes talk with each other.

    Returns:
        False if some drew the same, but so little that it may be chance: ask again after the next batch.

    Raises:
        ValueError: in every process, if some drew the same.
    """
    leaves = tree_leaves(batch)
    labels = [
        leaf for leaf in leaves if not isinstance(leaf, Tensor) or (leaf.ndim <= 2 and not leaf.is_floating_point())
    ]
    mine = torch.tensor([len(drawn), _digest(drawn, leaves), _digest(drawn, labels or leaves)], device=device)
    facts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(facts, mine)
    counts, batches, without_images = torch.stack(facts).T.tolist()
    way = (
        "use MultiDistributionSampler(labels, batch_size, m=...), which shares each batch out by torch.distributed's "
        "rank unless it is given another one, or torch's DistributedSampler; or seed what the sampler draws from by "
        "the rank"
    )
    if len(alike := _alike(batches)) > 1 and counts[alike[0]] >= _ENOUGH:
        raise ValueError(
            f"ranks {alike} draw the same items from {type(sampler).__name__}, and the loss would see each of them "
            f"{len(alike)} times: {way}"
        )
    if len(alike := _alike(without_images)) > 1 and counts[alike[0]] >= _ENOUGH:
        if alike[0] == rank():
            warnings.warn(
                f"ranks {alike} draw the same positions from {type(sampler).__name__}, of items with the same labels "
                f"but other images. If each has data of its own, all is well; if they are the same images in other "
                f"crops, the loss sees each of them {len(alike)} times: {way}",
                stacklevel=2,
            )
        return True
    return len(alike) == 1


def _digest(drawn: Sequence[Any], leaves: Sequence[Any]) -> int:
    total = hashlib.blake2b(repr(list(drawn)).encode(), digest_size=7)  # fits into an int64
    for leaf in leaves:
        tensor = leaf.detach().cpu().contiguous().flatten().view(torch.uint8) if isinstance(leaf, Tensor) else None
        total.update(repr(leaf).encode() if tensor is None else tensor.numpy().tobytes())
    return int.from_bytes(total.digest(), "big")


def _alike(digests: Sequence[int]) -> list[int]:
    """The ranks of the most frequent one."""
    most = max(digests, key=digests.count)
    return [number for number, digest in enumerate(digests) if digest == most]
