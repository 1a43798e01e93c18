"""Statistics over the batch of all processes."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

from puma_plugin.utils.distributed import world_size

_WHOLE_BATCH: ContextVar[bool] = ContextVar("puma_plugin_whole_batch", default=False)


@contextlib.contextmanager
def whole_batch() -> Iterator[None]:
    """Inside, losses are given the batch of all processes, already gathered."""
    token = _WHOLE_BATCH.set(True)
    try:
        yield
    finally:
        _WHOLE_BATCH.reset(token)


def sees_whole_batch() -> bool:
    """Whether a loss sees all there is: one process, or a batch gathered by us."""
    return world_size() == 1 or _WHOLE_BATCH.get()


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of ``values`` over all processes; the same on each."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def refuse_repeated_batch(values: Tensor, name: str) -> None:
    """RuntimeError if every process holds the same values (in any order), which means a batch that counts W times.

    Args:
        values: (n,) one number per item, e.g. its cosine to its proxy.
        name: of the loss, for the message.
    """
    world = world_size()
    ordered = values.double().sort().values
    size = torch.tensor([float(len(ordered)), float(ordered.sum()), float(ordered.square().sum())])
    mine = size.to(values.device, torch.float64)
    gathered = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(gathered, mine)
    if len(values) > 0 and all(torch.allclose(other, gathered[0], rtol=1e-7, atol=1e-9) for other in gathered):
        raise RuntimeError(
            f"all {world} processes gave {name} the same batch. Either pml's DistributedLossWrapper has gathered it: "
            f"that wrapper multiplies the gradient of the proxies by {world}; use puma_plugin.losses.GatheredLoss "
            "instead, with the gradients of one process on the whole batch. Or the sampler does not know its rank: "
            "give it rank and world_size"
        )
