"""A word that all processes of one start have in common, and no earlier start had.

A launcher that starts processes again gives them the store of the earlier ones, with what those left in it, such as the
addresses at which nobody listens any more. How often each machine has started its processes differs by machine
(TORCHELASTIC_RESTART_COUNT), so the processes agree among themselves.
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_PAUSE = 0.02  # seconds


def common_word(store: dist.Store, rank: int, world_size: int, patience: timedelta) -> str:
    """The word; every process must ask.

    Each process says hello with a word of its own. Rank 0 answers the hello that it finds with the common word, and
    once more where another hello has taken its place, until all have thanked for it.

    Raises:
        TimeoutError: some process has not asked within ``patience``; names them.
    """
    end = time.monotonic() + patience.total_seconds()
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello {rank}", own)
        while True:
            answered, _, word = _read(store, f"welcome {rank}").partition(" ")
            if answered == own:
                store.set(f"thanks {rank}", word)
                return word
            _wait(end, "process 0 has not answered")
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if _read(store, f"thanks {other}") == own:
                missing.remove(other)
            elif hello := _read(store, f"hello {other}"):
                store.set(f"welcome {other}", f"{hello} {own}")
        if missing:
            _wait(end, f"no word from process {', '.join(map(str, sorted(missing)))}")
    return own


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(end: float, what: str) -> None:
    if time.monotonic() > end:
        raise TimeoutError(what)
    time.sleep(_PAUSE)
