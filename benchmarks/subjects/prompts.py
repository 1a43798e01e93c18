"""Prompt matching: ours, the authors' form, the form of two matrix products, and both compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.agreement import TOLERANCE, relative_errors, require_agreement
from benchmarks.ceilings import DTYPES, Ceilings
from benchmarks.peers import prompts as peers
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Limit, Plan, Subject, Workload, compiled, gradients
from benchmarks.timing import Call
from puma_plugin.ops import match_prompts, reference

MODES = ("forward", "backward", "both")
EAGER = ("ours", "authors", "two_products")
COMPILED = ("authors_compiled", "two_products_compiled")
RESULTS = ("prompt", "weights", "grad keys", "grad attention", "grad prompts")
COPIES = 8  # the inputs are small: a step reads them from the memory once, from the cache after that


@dataclass(frozen=True)
class PromptCase:
    """Sizes of one call: batch B, width C, pool_size M, prompt_length L."""

    batch: int = 180
    width: int = 384
    pool_size: int = 20
    prompt_length: int = 8
    dtype: str = "float32"

    @property
    def id(self) -> str:
        return f"B{self.batch}-C{self.width}-M{self.pool_size}-L{self.prompt_length}-{self.dtype}"


@dataclass
class PromptInputs:
    """One set of inputs; the query takes no gradient, as in training."""

    query: Tensor
    parameters: tuple[Tensor, Tensor, Tensor]
    grads: tuple[Tensor, Tensor]


def make_inputs(case: PromptCase, device: str, seed: int) -> PromptInputs:
    """Random inputs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, DTYPES[case.dtype])

    pool, width, length = case.pool_size, case.width, case.prompt_length
    parameters = (normal(pool, width), normal(pool, width), normal(pool, length, width))
    for parameter in parameters:
        parameter.requires_grad_()
    query = normal(case.batch, width)
    return PromptInputs(query, parameters, (normal(case.batch, length, width), normal(case.batch, pool)))


class PromptWorkload(Workload):
    """One call of prompt matching, forward, backward or both; the weights take a gradient as well as the prompt."""

    case: PromptCase

    def __init__(self, case: PromptCase, device: str) -> None:
        super().__init__(case, device)
        torch._dynamo.reset()
        self.functions: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
            "ours": match_prompts,
            "authors": peers.authors,
            "two_products": reference.match_prompts,
            "authors_compiled": compiled(peers.authors),
            "two_products_compiled": compiled(reference.match_prompts),
        }

    @cached_property
    def inputs(self) -> list[PromptInputs]:
        return [make_inputs(self.case, self.device, seed) for seed in range(COPIES)]

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        function, x = self.functions[contestant], self.inputs[index % COPIES]
        if mode == "both":
            return lambda: gradients(function(x.query, *x.parameters), x.parameters, x.grads)
        if mode == "backward":
            outputs = function(x.query, *x.parameters)
            return lambda: gradients(outputs, x.parameters, x.grads)
        return lambda: function(x.query, *x.parameters)

    def reference(self) -> tuple[PromptInputs, list[Tensor]]:
        x = make_inputs(self.case, self.device, seed=99)
        parameters = [parameter.detach().double().requires_grad_() for parameter in x.parameters]
        outputs = peers.authors(x.query.double(), *parameters)
        grads = gradients(outputs, parameters, [grad.double() for grad in x.grads])
        return x, [*(output.detach() for output in outputs), *grads]

    def check(self, contestant: str, reference: tuple[PromptInputs, list[Tensor]]) -> dict[str, float]:
        x, expected = reference
        outputs = self.functions[contestant](x.query, *x.parameters)
        results = [*(output.detach() for output in outputs), *gradients(outputs, x.parameters, x.grads)]
        errors = relative_errors(results, expected, RESULTS)
        require_agreement(errors, TOLERANCE[DTYPES[self.case.dtype]])
        return errors

    def limit(self, mode: str, ceilings: Ceilings) -> Limit:
        """Each input read and each result written once, and the products.

        Forward: two of (B, C) x (C, M), one of (B, M) x (M, L C). Backward: the first two once more, for keys and
        attention (the query takes no gradient), the last twice, for weights and prompts.
        """
        case = self.case
        size = DTYPES[case.dtype].itemsize
        pool = case.pool_size * case.width * (2 + case.prompt_length)
        rows = case.batch * (case.width * (1 + case.prompt_length) + case.pool_size)
        product, length = 2.0 * case.batch * case.pool_size * case.width, case.prompt_length
        forward = size * (rows + pool), product * (2 + length)
        backward = size * (rows + 2 * pool), product * (2 + 2 * length)
        both = forward[0] + backward[0], forward[1] + backward[1]
        moved, flops = {"forward": forward, "backward": backward, "both": both}[mode]
        seconds, bound = ceilings.floor_s(moved, flops, case.dtype)
        return Limit(seconds, bound, flops, moved)


def plans(settings: Settings) -> list[Plan]:
    """The paper's size in detail; a small batch and a wider model for forward and backward together."""
    everyone = (*EAGER, *COMPILED) if settings.compiled else EAGER
    if settings.smoke:
        return [Plan(PromptCase(3, 8, 4, 2), mode, everyone) for mode in MODES]
    if not settings.full or (settings.malloc == "default" and settings.device == "cpu"):
        return [Plan(PromptCase(), "both", everyone)]
    return [Plan(PromptCase(), mode, everyone) for mode in MODES] + [
        Plan(PromptCase(batch=32), "both", everyone),
        Plan(PromptCase(width=768), "both", everyone),
    ]


SUBJECT = Subject("prompts", PromptWorkload, PromptCase, plans)
