"""The stochastic adapter: ours, the authors' form, its fixed form, both compiled, dropping by index, with Triton."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from benchmarks.agreement import TOLERANCE, relative_errors, require_agreement
from benchmarks.ceilings import DTYPES, Ceilings
from benchmarks.peers import adapter as peers
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Limit, Plan, Subject, Workload, compiled, gradients, number_of_copies
from benchmarks.timing import Call
from puma_plugin.ops import reference, stochastic_adapter

SCALE = 0.1
MODES = ("forward", "backward", "both")
EAGER = ("ours", "authors", "fixed", "indexed")
TRITON = ("indexed_triton", "triton")  # triton comes with CUDA builds of torch only
COMPILED = ("authors_compiled", "fixed_compiled")
RESULTS = ("output", "grad residual", "grad tokens", "grad down", "grad up", "branch")


@dataclass(frozen=True)
class AdapterCase:
    """Sizes of one adapter call.

    Attributes:
        batch, tokens, width, adapter_dim: B, N, C, r.
        drop: p, the share of dropped samples.
        dtype: of tokens and weights.
        residual_dtype: of the residual stream; under autocast it is float32 next to a half type.
    """

    batch: int = 180
    tokens: int = 205
    width: int = 384
    adapter_dim: int = 128
    drop: float = 0.5
    dtype: str = "float32"
    residual_dtype: str = ""

    @property
    def id(self) -> str:
        mixed = f"+{self.residual_dtype}" if self.residual_dtype else ""
        return f"B{self.batch}-N{self.tokens}-C{self.width}-r{self.adapter_dim}-p{self.drop:g}-{self.dtype}{mixed}"

    @property
    def kept(self) -> int:
        return self.batch - round(self.batch * self.drop)


@dataclass
class AdapterInputs:
    """One set of inputs; ``leaves`` are those that take a gradient."""

    residual: Tensor
    tokens: Tensor
    down: Tensor
    up: Tensor
    gate: Tensor | None
    kept: Tensor | None
    rank: Tensor
    grad: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.residual, self.tokens, self.down, self.up


def make_inputs(case: AdapterCase, device: str, seed: int, *, exact: bool = False) -> AdapterInputs:
    """Random inputs; the number of kept samples is fixed, which ones is random.

    With ``exact``, tokens and ``down`` are small integers: activations before the ReLU are then the same in every
    dtype and order of summation, so that no contestant's mask differs by a sign that rounding decided.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[case.dtype]
    residual_dtype = DTYPES[case.residual_dtype or case.dtype]
    shape = (case.batch, case.tokens, case.width)

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    def integers(*size: int) -> Tensor:
        return torch.randint(-1, 2, size, generator=generator).float()

    draw = integers if exact else normal
    tokens, down = draw(*shape), draw(case.width, case.adapter_dim)
    if not exact:
        down *= case.width**-0.5
    gate = kept = None
    if case.drop > 0:
        kept = torch.randperm(case.batch, generator=generator)[: case.kept].sort().values
        gate = torch.zeros(case.batch).index_fill_(0, kept, 1 / (1 - case.drop))
    rank = torch.arange(case.batch, dtype=torch.int32)
    if kept is not None:
        rank = torch.full_like(rank, -1).index_copy_(0, kept, rank[: case.kept])
    up = normal(case.adapter_dim, case.width, std=0.02)
    # A small residual in the check: next to a large one the branch would drown in the result's rounding.
    residual, grad = normal(*shape, std=0.05 if exact else 1.0), normal(*shape)
    place = partial(torch.Tensor.to, device=device)
    return AdapterInputs(
        place(residual, dtype=residual_dtype).requires_grad_(),
        place(tokens, dtype=dtype).requires_grad_(),
        place(down, dtype=dtype).requires_grad_(),
        place(up, dtype=dtype).requires_grad_(),
        None if gate is None else place(gate),
        None if kept is None else place(kept),
        place(rank),
        place(grad, dtype=residual_dtype),
    )


class AdapterWorkload(Workload):
    """One adapter call, forward (training where p > 0, else evaluation without gradient), backward, or both."""

    case: AdapterCase

    def __init__(self, case: AdapterCase, device: str) -> None:
        super().__init__(case, device)
        torch._dynamo.reset()
        self._functions: dict[str, Callable[[AdapterInputs], Tensor]] = {}

    @cached_property
    def inputs(self) -> list[AdapterInputs]:
        first = make_inputs(self.case, self.device, seed=0)
        size = sum(t.numel() * t.element_size() for t in (*first.leaves, first.grad))
        copies = number_of_copies(size, self.device)
        return [first, *(make_inputs(self.case, self.device, seed) for seed in range(1, copies))]

    def function(self, contestant: str) -> Callable[[AdapterInputs], Tensor]:
        """The contestant as a function of one set of inputs."""
        if contestant not in self._functions:
            self._functions[contestant] = self._make(contestant)
        return self._functions[contestant]

    def _make(self, contestant: str) -> Callable[[AdapterInputs], Tensor]:
        scale = SCALE / (1 - self.case.drop)
        if contestant == "indexed":
            return lambda x: peers.indexed(x.residual, x.tokens, x.down, x.up, x.kept, scale)
        if contestant == "indexed_triton":
            from benchmarks.peers.triton_indexed import indexed_adapter

            return lambda x: indexed_adapter(x.residual, x.tokens, x.down, x.up, x.kept, x.rank, scale)
        if contestant == "triton":
            from benchmarks.peers.triton_adapter import fused_adapter

            return lambda x: fused_adapter(x.residual, x.tokens, x.down, x.up, x.gate, x.kept, x.rank, SCALE)
        form = {
            "ours": stochastic_adapter,
            "authors": peers.authors,
            "fixed": peers.fixed,
            "authors_compiled": compiled(peers.authors),
            "fixed_compiled": compiled(peers.fixed),
        }[contestant]
        return lambda x: form(x.residual, x.tokens, x.down, x.up, x.gate, SCALE)

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        function, inputs = self.function(contestant), self.inputs[index % len(self.inputs)]
        if mode == "both":
            return lambda: gradients((function(inputs),), inputs.leaves, (inputs.grad,))
        if mode == "backward":
            output = function(inputs)
            return lambda: gradients((output,), inputs.leaves, (inputs.grad,))
        if self.case.drop > 0:
            return lambda: function(inputs)
        return lambda: _without_gradient(function, inputs)

    def reference(self) -> tuple[AdapterInputs, list[Tensor]]:
        inputs = make_inputs(self.case, self.device, seed=99, exact=True)
        leaves = residual, tokens, down, up = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
        gate = None if inputs.gate is None else inputs.gate.double()
        output = reference.stochastic_adapter(residual, tokens, down, up, gate, SCALE)
        return inputs, [output.detach(), *gradients((output,), leaves, (inputs.grad.double(),))]

    def check(self, contestant: str, reference: tuple[AdapterInputs, list[Tensor]]) -> dict[str, float]:
        inputs, expected = reference
        output = self.function(contestant)(inputs)
        results = [output.detach(), *gradients((output,), inputs.leaves, (inputs.grad,))]
        # What the branch adds, too: next to the residual its errors might hide.
        residual = inputs.residual.detach().double()
        results.append(results[0].double() - residual)
        errors = relative_errors(results, [*expected, expected[0] - residual], RESULTS)
        require_agreement(errors, TOLERANCE[DTYPES[self.case.dtype]])
        return errors

    def work(self, mode: str) -> tuple[float, float]:
        """Bytes read and written and FLOP that no implementation can avoid.

        Forward: tokens, residual and result of the kept samples only, as if the residual were updated in place.
        Backward: upstream gradient and tokens of the kept samples, and the whole gradient of the tokens.
        """
        case = self.case
        share = case.kept / case.batch
        size = DTYPES[case.dtype].itemsize
        residual_size = DTYPES[case.residual_dtype or case.dtype].itemsize
        elements = case.batch * case.tokens * case.width
        product = 2.0 * case.kept * case.tokens * case.width * case.adapter_dim
        forward = share * elements * (size + 2 * residual_size), 2 * product
        backward = elements * (share * (size + residual_size) + size), 4 * product
        both = forward[0] + backward[0], forward[1] + backward[1]
        return {"forward": forward, "backward": backward, "both": both}[mode]

    def limit(self, mode: str, ceilings: Ceilings) -> Limit:
        moved, flops = self.work(mode)
        seconds, bound = ceilings.floor_s(moved, flops, self.case.dtype)
        return Limit(seconds, bound, flops, moved)


def _without_gradient(function: Callable[[AdapterInputs], Tensor], inputs: AdapterInputs) -> Tensor:
    with torch.no_grad():
        return function(inputs)


def plans(settings: Settings) -> list[Plan]:
    """What is compared: the sizes of the paper in detail, then cost against B and against p."""
    eager = (*EAGER, *TRITON) if settings.device == "cuda" and importlib.util.find_spec("triton") else EAGER
    everyone = (*eager, *COMPILED) if settings.compiled else eager
    cuda = settings.device == "cuda"
    if settings.smoke:
        tiny = AdapterCase(3, 5, 64, 16, 0.5, "float32") if cuda else AdapterCase(3, 5, 16, 4, 0.5, "float32")
        return [Plan(tiny, mode, everyone) for mode in MODES]
    # The dtypes that training uses most there, first.
    dtypes = ("bfloat16",) if cuda else ("float32", "bfloat16")
    if not settings.full and cuda:  # what the goals speak of, and training under autocast
        cases = [AdapterCase(width=width, drop=drop, dtype="bfloat16") for width in (384, 768) for drop in (0.5, 0.0)]
        cases.append(AdapterCase(dtype="bfloat16", residual_dtype="float32"))
        return [Plan(case, "both", everyone) for case in cases]
    if not settings.full:
        cases = [AdapterCase(dtype=dtypes[0]), AdapterCase(batch=32, dtype="bfloat16")]
        return [Plan(case, "both", everyone) for case in cases]
    sizes = ((180, 0.5), (180, 0.0), (32, 0.5))
    detailed = [AdapterCase(batch, drop=drop, dtype=dtype) for dtype in dtypes for batch, drop in sizes]
    if settings.malloc == "default" and not cuda:
        return [Plan(case, "both", everyone) for case in detailed]
    result = []
    for case in detailed:
        # Training at the paper's size in detail; without dropping the forward alone is evaluation.
        alone = () if case.batch != 180 else ("forward", "backward") if case.drop else ("forward",)
        result += [Plan(case, mode, everyone) for mode in (*alone, "both")]
    for dtype in dtypes:
        result += [Plan(AdapterCase(batch, dtype=dtype), "both", eager) for batch in (8, 90)]
        result += [Plan(AdapterCase(drop=drop, dtype=dtype), "both", eager) for drop in (0.25, 0.75)]
        result.append(Plan(AdapterCase(width=768, dtype=dtype), "both", everyone))
    if cuda:
        others = [
            AdapterCase(width=768, drop=0.0, dtype="bfloat16"),
            AdapterCase(width=768, adapter_dim=64, dtype="bfloat16"),
            AdapterCase(dtype="bfloat16", residual_dtype="float32"),
            AdapterCase(dtype="float16"),
            AdapterCase(dtype="float32"),
        ]
        result += [Plan(case, "both", everyone) for case in others]
    return result


SUBJECT = Subject("adapter", AdapterWorkload, AdapterCase, plans)
