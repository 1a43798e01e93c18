"""The frozen branches of a block on the CPU: ours, torch's operators, and these compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.agreement import TOLERANCE, relative_errors, require_agreement
from benchmarks.ceilings import DTYPES, Ceilings
from benchmarks.peers import branches as peers
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Limit, Plan, Subject, Workload, compiled, gradients, number_of_copies
from benchmarks.timing import Call
from puma_plugin.ops import frozen_mlp, packed_attention

MODES = ("forward", "both")
CONTESTANTS = ("ours", "torch")
COMPILED = ("torch_compiled",)
HEAD_DIM = 64


@dataclass(frozen=True)
class BranchCase:
    """One branch of a ViT's block.

    Attributes:
        branch: "mlp", with a hidden layer of four times the width, or "attention", without its linear layers.
        batch, tokens, width: B, N and C; heads are 64 wide.
        dtype: of everything; the MLP's kernels are for float32.
    """

    branch: str
    batch: int
    width: int = 384
    tokens: int = 205
    dtype: str = "float32"

    @property
    def id(self) -> str:
        return f"{self.branch}-B{self.batch}-N{self.tokens}-C{self.width}-{self.dtype}"


class BranchWorkload(Workload):
    """One call, forward, or forward and backward for the gradient of the input."""

    case: BranchCase

    def __init__(self, case: BranchCase, device: str) -> None:
        super().__init__(case, device)
        torch._dynamo.reset()
        by_name: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
            "mlp": (frozen_mlp, peers.mlp),
            "attention": (packed_attention, peers.attention),
        }
        ours, torchs = by_name[case.branch]
        self.functions = {"ours": ours, "torch": torchs, "torch_compiled": compiled(torchs)}

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.case.dtype]

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """Of the MLP; attention has none."""
        if self.case.branch == "attention":
            return ()
        width, hidden = self.case.width, 4 * self.case.width
        generator = torch.Generator().manual_seed(0)
        shapes = ((hidden, width), (hidden,), (width, hidden), (width,))
        return tuple((torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(self.dtype) for shape in shapes)

    def make_input(self, seed: int) -> tuple[Tensor, Tensor]:
        """An input that takes a gradient, and the gradient of the output."""
        case = self.case
        generator = torch.Generator().manual_seed(seed)
        shape: tuple[int, ...] = (case.batch, case.tokens, case.width)
        grad = torch.randn(shape, generator=generator).to(self.dtype)
        if case.branch == "attention":
            shape = (case.batch, case.tokens, 3, case.width // HEAD_DIM, HEAD_DIM)
        return torch.randn(shape, generator=generator).to(self.dtype).requires_grad_(), grad

    @cached_property
    def inputs(self) -> list[tuple[Tensor, Tensor]]:
        first = self.make_input(0)
        copies = number_of_copies(sum(tensor.nbytes for tensor in first), self.device)
        return [first, *(self.make_input(seed) for seed in range(1, copies))]

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        function, (input, grad) = self.functions[contestant], self.inputs[index % len(self.inputs)]
        if mode == "both":
            return lambda: gradients([function(input, *self.weights)], [input], [grad])
        values = input.detach()
        return lambda: function(values, *self.weights)

    def reference(self) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        input, grad = given = self.make_input(99)
        exact = input.detach().double().requires_grad_()
        function = peers.mlp if self.case.branch == "mlp" else peers.attention
        output = function(exact, *(weight.double() for weight in self.weights))
        return given, [output.detach(), *gradients([output], [exact], [grad.double()])]

    def check(self, contestant: str, reference: tuple[tuple[Tensor, Tensor], list[Tensor]]) -> dict[str, float]:
        (input, grad), expected = reference
        output = self.functions[contestant](input, *self.weights)
        results = [output.detach(), *gradients([output], [input], [grad])]
        errors = relative_errors(results, expected, ("output", "grad input"))
        require_agreement(errors, TOLERANCE[self.dtype])
        return errors

    def limit(self, mode: str, ceilings: Ceilings) -> Limit:
        """Products: of the MLP two each way; of attention two forward, and four backward where its weights are kept.

        Each input and result is read or written once, the MLP's weights too.
        """
        case = self.case
        rows, both = case.batch * case.tokens, mode == "both"
        matrix = float(self.dtype.itemsize) * rows * case.width
        if case.branch == "mlp":
            product, weights = 4.0 * rows * case.width * 4 * case.width, 2 * 4 * case.width**2 + 5 * case.width
            moved = matrix * 2 + self.dtype.itemsize * weights
            flops = product * (2 if both else 1)
        else:
            product, moved = 2.0 * rows * case.tokens * case.width, matrix * 4
            flops = product * (6 if both else 2)
        moved *= 2 if both else 1
        seconds, bound = ceilings.floor_s(moved, flops, case.dtype)
        return Limit(seconds, bound, flops, moved)


def plans(settings: Settings) -> list[Plan]:
    """Of ViT-S with a small and a larger batch, of ViT-B; there are kernels for the CPU only."""
    if settings.device == "cuda":
        return []
    everyone = (*CONTESTANTS, *COMPILED) if settings.compiled else CONTESTANTS
    if settings.smoke:
        cases = [
            BranchCase("mlp", 3, 32, 200),
            BranchCase("attention", 2, 64, 9),
            BranchCase("attention", 2, 64, 9, "bfloat16"),
        ]
        return [Plan(case, mode, everyone) for case in cases for mode in MODES]
    both = [Plan(BranchCase(branch, 8), "both", everyone) for branch in ("mlp", "attention")]
    both.append(Plan(BranchCase("attention", 8, dtype="bfloat16"), "both", everyone))
    if not settings.full or settings.malloc == "default":
        return both
    both += [
        plan
        for branch in ("mlp", "attention")
        for plan in (
            Plan(BranchCase(branch, 8), "forward", everyone),
            Plan(BranchCase(branch, 32), "both", everyone),
            Plan(BranchCase(branch, 8, 768), "both", everyone),
        )
    ]
    both.append(Plan(BranchCase("attention", 8, dtype="bfloat16"), "forward", everyone))
    return both


SUBJECT = Subject("branches", BranchWorkload, BranchCase, plans)
