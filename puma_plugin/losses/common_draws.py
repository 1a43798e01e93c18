"""Random numbers that are the same in every process; pml's losses and miners draw from torch's default generators."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def state_digest(device: torch.device) -> int:
    """A number that differs where the states of the generators of CPU and device do."""
    digest = zlib.crc32(torch.get_rng_state().numpy().tobytes())
    if device.type == "cuda":
        digest = zlib.crc32(torch.cuda.get_rng_state(device).numpy().tobytes(), digest)
    return digest


@contextmanager
def drawn_from(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, these generators begin with ``seed``; behind it they go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
