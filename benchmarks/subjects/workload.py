"""What every subject provides: one workload object per case, for speed, memory and correctness."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from benchmarks.ceilings import Ceilings
from benchmarks.machine import last_level_cache_bytes
from benchmarks.settings import Settings
from benchmarks.timing import Call

MAX_COPIES = 24


class Case(Protocol):
    """Sizes and dtypes of one case: a frozen dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Short name, unique within the subject."""


@dataclass(frozen=True)
class Plan:
    """One comparison: these contestants do this to this case.

    Attributes:
        case: sizes and dtypes.
        mode: what is timed, one of the workload's modes.
        contestants: names, in the order of the tables.
    """

    case: Case
    mode: str
    contestants: tuple[str, ...]


@dataclass(frozen=True)
class Limit:
    """The least time a mode could take.

    Attributes:
        seconds: the limit, or None where it is another contestant's time.
        bound: "bandwidth", "matrix product", or "contestant <name>".
        flops, bytes: the work behind it; 0 where the limit is a contestant.
    """

    seconds: float | None
    bound: str
    flops: float = 0.0
    bytes: float = 0.0


class Workload(ABC):
    """One case of one subject: its inputs, its contestants, and what they have to agree on.

    Args:
        case: sizes and dtypes.
        device: "cpu" or "cuda".
    """

    device_only: ClassVar[bool] = True  # on a GPU: time the device alone, without the host's share

    def __init__(self, case: Any, device: str) -> None:
        self.case = case
        self.device = device

    @abstractmethod
    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        """The call to be timed; everything that is not to be timed happens here. Inputs rotate with ``index``."""

    @abstractmethod
    def reference(self) -> Any:
        """What `check` compares with; made once per case."""

    @abstractmethod
    def check(self, contestant: str, reference: Any) -> dict[str, float]:
        """Relative error of every result and gradient.

        Raises:
            DisagreementError: the contestant computes something else.
        """

    def least_repeats(self, mode: str) -> int:
        """How many calls a sample has to hold: more than one where calls differ that come one after the other."""
        return 1

    def limit(self, mode: str, ceilings: Ceilings) -> Limit | None:
        """The least time for this mode; None where there is no meaningful one."""
        return None


@dataclass(frozen=True)
class Subject:
    """A subject's workload class, the class of its cases, and what is compared."""

    name: str
    workload: Callable[[Any, str], Workload]
    case: type
    plans: Callable[[Settings], list[Plan]]


def number_of_copies(bytes_per_input: int, device: str) -> int:
    """How many sets of inputs to rotate through: twice the last-level cache together, but MAX_COPIES at most."""
    needed = -(-2 * last_level_cache_bytes(device) // max(bytes_per_input, 1))
    return max(2, min(MAX_COPIES, needed))


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of ``inputs``; nothing is accumulated."""
    return torch.autograd.grad(outputs, inputs, grads)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for fixed shapes."""
    return torch.compile(function, dynamic=False)
