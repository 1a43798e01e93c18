"""Inputs for the operators, and every device that this machine has."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# Makes adapter_formula importable: pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def error() -> Callable[[Tensor, Tensor], float]:
    """Largest difference, relative to the largest value expected."""

    def relative(got: Tensor, expected: Tensor) -> float:
        assert got.shape == expected.shape
        if expected.numel() == 0:
            return 0.0
        difference = (got.detach().double() - expected.detach().double()).abs().max()
        return float(difference / expected.detach().double().abs().max().clamp_min(1e-30))

    return relative


@pytest.fixture
def adapter_inputs(device: str) -> Callable[..., list[Tensor]]:
    """residual, tokens, down, up as leaves that require a gradient."""

    def make(
        samples: int, length: int, width: int, rank: int, dtype: torch.dtype, residual_dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        tensors = [
            torch.randn(samples, length, width, dtype=torch.float64),
            torch.randn(samples, length, width, dtype=torch.float64),
            torch.randn(width, rank, dtype=torch.float64) / width**0.5,
            torch.randn(rank, width, dtype=torch.float64),
        ]
        dtypes = [residual_dtype or dtype, dtype, dtype, dtype]
        return [t.to(device, d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)]

    return make


@pytest.fixture
def prompt_inputs(device: str) -> Callable[..., list[Tensor]]:
    """query, keys, attention, prompts as leaves that require a gradient."""

    def make(samples: int, width: int, pool: int, length: int, dtype: torch.dtype) -> list[Tensor]:
        shapes = [(samples, width), (pool, width), (pool, width), (pool, length, width)]
        return [torch.randn(*shape, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes]

    return make


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@pytest.fixture
def without_gradient() -> Callable[[Tensor], Tensor]:
    """The sum, through which no gradient comes back: not zeros, but None."""
    return _NoGradient.apply
