"""This process' place among those of torch.distributed; alone where it is not initialised."""

import torch.distributed as dist


def is_distributed() -> bool:
    """Whether torch.distributed is initialised, with one process or several."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1
