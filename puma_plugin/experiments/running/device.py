"""The device of a run, and the number types that its steps compute in."""

import torch

AMP = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Setting precision -> type of autocast."""


def choose_device(name: str, world_size: int = 1, local_rank: int = 0) -> torch.device:
    """The device for "auto", "cpu", "cuda", ..., of this process.

    Raises:
        ValueError: for a device that this PyTorch does not know or cannot reach.
    """
    if world_size > 1:
        return process_device(name, local_rank)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}, which cannot be used ({cause}); give auto or cpu") from error
    return device


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
