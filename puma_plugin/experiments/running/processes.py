"""Several processes that train one model together, as `torchrun` starts them."""

import contextlib
import gc
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from puma_plugin.experiments.data.identity import file_digest
from puma_plugin.experiments.running.attempt import common_word
from puma_plugin.experiments.running.device import process_device
from puma_plugin.experiments.running.failure_board import FailureBoard, leave_word_to_another
from puma_plugin.utils import distributed
from puma_plugin.utils.launcher import number_from_environment, started_processes

T = TypeVar("T")
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
        if not distributed.is_distributed():
            return cls()
        return cls(distributed.rank(), distributed.world_size(), number_from_environment("LOCAL_RANK", 0))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def any(self, *own: bool) -> list[bool]:
        """Of each, whether it is so in any of the processes; all must ask."""
        if self.world_size == 1:
            return list(own)
        found = torch.tensor(own, dtype=torch.uint8)  # on the CPU: a GPU would be waited for
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.bool().tolist()

    def gather(self, own: T) -> list[T]:
        """What each process has, by rank; all must give theirs."""
        if self.world_size == 1:
            return [own]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, own)
        return found

    def require_same_file(self, path: Path, setting: str) -> bool:
        """Whether the file exists, for all processes alike; all must ask.

        Args:
            setting: what the file lies in, for the message.

        Raises:
            ValueError: some processes find it and others do not, or find another one: no common file system.
        """
        if self.world_size == 1:
            return path.is_file()
        content = file_digest(path)
        found = self.gather((socket.gethostname(), content))
        first = found[0][1]
        for rank, (host, other) in enumerate(found):
            if other != first:
                what = "none" if other is None else "one" if first is None else "another one"
                raise ValueError(
                    f"{path}: process {rank} on {host} finds {what} there, unlike the first process; {setting} must be "
                    "on a file system that all machines share, or be copied from the first one's machine to the others"
                )
        return content is not None

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
            leave_word_to_another()
        return cast(T, value)


ALONE = Processes()


@contextlib.contextmanager
def connected(device: str, timeout: float) -> Iterator[Processes]:
    """Join the other processes, if a launcher such as torchrun has started several.

    An error inside is raised by one process; the others leave without a word if theirs is the same, or if they only
    lost that process.

    Args:
        device: the setting; "cpu" communicates by gloo, a GPU by nccl.
        timeout: seconds that a process waits for the others, before it gives up.

    Raises:
        ValueError: the launcher's environment variables are incomplete or no numbers, or there are more processes than
            GPUs.
        OSError: another program uses the launcher's port.
        TimeoutError: some processes did not answer in time; names them.
    """
    if started_processes() == 1:
        yield Processes()
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "with `torchrun --nproc-per-node=N -m puma_plugin train ...`"
        )
    numbers = {name: number_from_environment(name, 0) for name in _VARIABLES if name != "MASTER_ADDR"}
    target = process_device(device, numbers["LOCAL_RANK"])
    if target.type == "cuda":
        torch.cuda.set_device(target)
    patience = timedelta(seconds=timeout)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
        backend = "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo"
        attempt = dist.PrefixStore(common_word(store, rank, world_size, patience), store)
        group_store = dist.PrefixStore("group", attempt)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=world_size, timeout=patience)
    except (RuntimeError, TimeoutError) as error:  # of gloo, nccl, torch.distributed; of common_word
        cause = str(error).strip().splitlines()[0][:500]
        who = f"process {numbers['RANK']} of {numbers['WORLD_SIZE']} could not join the others"
        if "EADDRINUSE" in cause:
            port = numbers["MASTER_PORT"]
            raise OSError(
                f"{who}: another program uses port {port}; give another one, torchrun --master-port"
            ) from error
        raise TimeoutError(
            f"{who} (process_timeout is {timeout:g} seconds): {cause}; look whether all have started, and whether "
            f"{os.environ['MASTER_ADDR']} can be reached from every machine"
        ) from error
    processes = Processes.current()
    board = FailureBoard(dist.PrefixStore("board", attempt), processes.rank, processes.world_size, timeout)
    try:
        yield processes
    except Exception as error:
        board.speak_for_all(error)
        raise
    # Not after a failure: it could wait for processes that no longer answer.
    gc.collect()  # models in reference cycles hold the group
    dist.destroy_process_group()
