"""Several processes that train one model together, as `torchrun` starts them."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
# A process that died is noticed at once, by the closed connection and by torchrun. The time is for waiting: the first
# process searches a large gallery or opens a million images while the others wait.
_PATIENCE = timedelta(hours=2)
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process' place among all.

    Attributes:
        rank, world_size: its number, and how many there are, on all machines.
        local_rank: its number on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> "Processes":
        """As torch.distributed is initialised; one process where it is not."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, given to all; it runs there only.

        Raises:
            ValueError, OSError: what `make` raised, in the first process.
            SystemExit: in the others then, so that the message appears once.
        """
        if self.world_size == 1:
            return make()
        box: list[Any] = [None]
        error: Exception | None = None
        if self.first:
            try:
                box = [(True, make())]
            except (ValueError, OSError) as caught:
                box, error = [(False, None)], caught
        dist.broadcast_object_list(box, src=0)
        if error is not None:
            raise error
        done, value = box[0]
        if not done:
            raise SystemExit(2)
        return cast(T, value)


@contextlib.contextmanager
def connected(device: str) -> Iterator[Processes]:
    """Join the other processes, if a launcher such as torchrun has started several.

    Args:
        device: the setting; "cpu" communicates by gloo, a GPU by nccl.

    Raises:
        ValueError: the launcher's environment variables are incomplete, or there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "with `torchrun --nproc-per-node=N -m puma_plugin train ...`"
        )
    target = process_device(device, int(os.environ["LOCAL_RANK"]))
    if target.type == "cuda":
        torch.cuda.set_device(target)
    dist.init_process_group("cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo", timeout=_PATIENCE)
    yield Processes.current()
    # Not after a failure: it could wait for processes that no longer answer.
    gc.collect()  # models in reference cycles hold the group
    dist.destroy_process_group()


def process_device(name: str, local_rank: int) -> torch.device:
    """The device of a process: the GPU of its number on the machine, or the CPU.

    Raises:
        ValueError: a certain GPU was asked for, or the machine has fewer GPUs than processes.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ValueError(f"device is {name!r}, but several processes cannot share one; give auto, cuda or cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank} of this machine has no GPU, as there are {count}; start with "
            f"--nproc-per-node={max(count, 1)}, or give --device cpu"
        )
    return torch.device("cuda", local_rank)
