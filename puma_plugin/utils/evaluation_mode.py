"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode restored after."""
    modes = [(part, part.training) for part in module.modules()] if module is not None else []
    if module is not None:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
