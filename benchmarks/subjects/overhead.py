"""What a call costs on the host when there is nothing to compute: tensors of one element."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.agreement import TOLERANCE, require_agreement
from benchmarks.peers import adapter as peers
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Plan, Subject, Workload
from benchmarks.timing import Call
from puma_plugin.ops import stochastic_adapter

MODES = ("without_gradient", "with_gradient")


@dataclass(frozen=True)
class OverheadCase:
    """One element, on the CPU."""

    operator: str = "stochastic_adapter"

    @property
    def id(self) -> str:
        return f"{self.operator}-one_element"


class OverheadWorkload(Workload):
    """One forward call; ``with_gradient`` also records the graph for the backward."""

    def __init__(self, case: OverheadCase, device: str) -> None:
        super().__init__(case, "cpu")
        self.functions: dict[str, Callable[..., Tensor]] = {"ours": stochastic_adapter, "fixed": peers.fixed}

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        function = self.functions[contestant]
        residual, tokens = torch.ones(1, 1, 1), torch.ones(1, 1, 1)
        down, up = torch.ones(1, 1), torch.ones(1, 1)
        gate = torch.ones(1)
        if mode == "with_gradient":
            for leaf in (residual, tokens, down, up):
                leaf.requires_grad_()
        return lambda: function(residual, tokens, down, up, gate, 0.1)

    def reference(self) -> None:
        return None

    def check(self, contestant: str, reference: None) -> dict[str, float]:
        result = self.prepare(contestant, "with_gradient", 0)()
        assert isinstance(result, Tensor)
        errors = {"output": abs(result.item() - 1.1) / 1.1}
        require_agreement(errors, TOLERANCE[torch.float32])
        return errors


def plans(settings: Settings) -> list[Plan]:
    """With and without gradient; the same in every setting of the allocator."""
    if settings.device == "cuda" or settings.malloc == "raised":
        return []
    return [Plan(OverheadCase(), mode, ("ours", "fixed")) for mode in MODES]


SUBJECT = Subject("overhead", OverheadWorkload, OverheadCase, plans)
