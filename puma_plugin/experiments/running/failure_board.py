"""How processes that train together tell each other why they fail, so that one of them speaks."""

import contextlib
import os
import socket
import threading
import time
from typing import NoReturn

import torch.distributed as dist

# Seconds in which processes that fail together hear of each other, and in which the one that speaks has spoken: the
# launcher ends all as soon as one has ended.
_GRACE = 2.0
# Seconds after which the store that they hear of each other by is taken for dead.
_STORE_PATIENCE = 10.0
# What gloo's errors, which have no type of their own, say where another process is lost: a place in its sources; or,
# of an operation that ended as another one's time was up (DDP has several at once), this.
_LOST = ("gloo/", "Application timeout caused pair closure")


def leave_word_to_another() -> NoReturn:
    """End without a word, when the process that speaks has had time to."""
    time.sleep(_GRACE)
    raise SystemExit(2)


class FailureBoard:
    """Where processes that fail tell the others why. It is the store of the launcher, or else of the first process."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        self.store = store
        self.rank = rank
        self.ranks = range(world_size)
        self.timeout = timeout
        place = f"pid {os.getpid()} on {socket.gethostname()}"
        store.set(f"place {self.rank}", place)

    def speak_for_all(self, error: Exception) -> None:
        """Return if this process is the one that reports its own error.

        Raises:
            TimeoutError: the error is that others did not answer, and this process is the one that says so.
            SystemExit: another one speaks.
        """
        lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST)
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
            leave_word_to_another()
        if any(other < self.rank and text == own for other, text in failed.items()):
            leave_word_to_another()
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
