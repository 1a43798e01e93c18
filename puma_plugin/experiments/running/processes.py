"""Several processes that train one model together, as `torchrun` starts them."""

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist

from puma_plugin.experiments.data.identity import file_digest
from puma_plugin.experiments.running.attempt import common_word
from puma_plugin.utils import distributed
from puma_plugin.utils.launcher import number_from_environment, started_processes

T = TypeVar("T")
# Seconds in which processes that fail together hear of each other, and in which the one that speaks has spoken: the
# launcher ends all as soon as one has ended.
_GRACE = 2.0
# Seconds after which the store that they hear of each other by is taken for dead.
_STORE_PATIENCE = 10.0
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
            _leave_word_to_another()
        return cast(T, value)


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
    board = _Board(dist.PrefixStore("board", attempt), processes, timeout)
    try:
        yield processes
    except Exception as error:
        board.speak_for_all(error)
        raise
    # Not after a failure: it could wait for processes that no longer answer.
    gc.collect()  # models in reference cycles hold the group
    dist.destroy_process_group()


def _leave_word_to_another() -> NoReturn:
    time.sleep(_GRACE)
    raise SystemExit(2)


class _Board:
    """Where processes that fail tell the others why. It is the store of the launcher, or else of the first process."""

    def __init__(self, store: dist.Store, processes: Processes, timeout: float) -> None:
        self.store = store
        self.rank = processes.rank
        self.ranks = range(processes.world_size)
        self.timeout = timeout
        place = f"pid {os.getpid()} on {socket.gethostname()}"
        store.set(f"place {self.rank}", place)

    def speak_for_all(self, error: Exception) -> None:
        """Return if this process is the one that reports its own error.

        Raises:
            TimeoutError: the error is that others did not answer, and this process is the one that says so.
            SystemExit: another one speaks.
        """
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        own = "" if lost else f"{type(error).__name__} {error}"
        heard: list[tuple[dict[int, str], dict[int, str]]] = []

        def listen() -> None:
            with contextlib.suppress(dist.DistError):  # the store's process has ended
                heard.append(self._exchange(own))

        # In a thread, as a store whose process is stopped would keep this one waiting for ever.
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        thread.join(_GRACE + _STORE_PATIENCE)
        if not heard:
            if lost:
                raise TimeoutError(self._silence("0")) from error
            return
        failed, silent = heard[0]
        if lost and any(failed.values()):
            _leave_word_to_another()
        if any(other < self.rank and text == own for other, text in failed.items()):
            _leave_word_to_another()
        if lost and silent:
            who = ", ".join(f"{rank} ({place})" for rank, place in silent.items())
            raise TimeoutError(self._silence(who)) from error
        if lost:
            cause = str(error).strip().splitlines()[0]
            raise TimeoutError(f"the processes lost each other ({cause}); look at the network") from error

    def _exchange(self, own: str) -> tuple[dict[int, str], dict[int, str]]:
        """Tell this process' error; the errors of all that failed (empty: lost another), the places of the others."""
        self.store.set(f"failed {self.rank}", own)
        time.sleep(_GRACE)
        failed = {
            rank: self.store.get(f"failed {rank}").decode()
            for rank in self.ranks
            if self.store.check([f"failed {rank}"])
        }
        return failed, {
            rank: self.store.get(f"place {rank}").decode()
            for rank in self.ranks
            if rank not in failed and self.store.check([f"place {rank}"])
        }

    def _silence(self, who: str) -> str:
        return (
            f"no answer from process {who}: it has died (was killed, or had no memory left), or did not answer within "
            f"process_timeout, {self.timeout:g} seconds, as it hangs (a stuck disk or data loader), was stopped, "
            "cannot be reached over the network, or works for that long alone; start again (`puma train` with "
            "--resume), in the last case with a larger --process_timeout"
        )


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
