"""Checks of arguments, so that a mistake is reported where it was made and not ten layers below."""

import math
from typing import Any

import torch


def require_int(name: str, value: Any, minimum: int) -> int:
    """Return ``value`` if it is an int of at least ``minimum``; raise TypeError or ValueError naming it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def require_float(name: str, value: Any, minimum: float = -math.inf, below: float = math.inf) -> float:
    """Return ``value`` as float if it is finite and in [minimum, below); raise TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not (math.isfinite(value) and minimum <= value < below):
        raise ValueError(f"{name} must be a finite number in [{minimum:g}, {below:g}), got {value}")
    return float(value)


def require_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool; raise TypeError naming it otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``choices``; raise ValueError listing them otherwise."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def require_generator(generator: Any) -> torch.Generator | None:
    """Return ``generator`` if it is None or a CPU generator; raise TypeError otherwise."""
    if generator is None or (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        return generator
    raise TypeError(
        f"generator must be a torch.Generator on the CPU or None, got {generator!r}; "
        "for a seed give torch.Generator().manual_seed(seed)"
    )
