"""A whole training step of a vision transformer: PUMA in several forms, without adapters, and full fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.agreement import DisagreementError, relative_errors, require_agreement
from benchmarks.ceilings import Ceilings
from benchmarks.peers.vit import (
    leave_adapters_out,
    trainable,
    use_authors_form,
    use_fixed_form,
    use_torch_branches,
)
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Limit, Plan, Subject, Workload
from benchmarks.timing import Call
from puma_plugin import EmbeddingHead, UnifiedEmbedder, adapt

# The same function computed in several ways ...
FORMS = ("ours", "torch_branches", "authors", "fixed")
# ... and two other ways to train: prompts only, and every weight. (In files before 2026-11-27 "no_adapters" were
# prompts with torch's branches.)
OTHERS = ("without_adapters", "full_fine_tuning")
# The same under torch.compile.
COMPILED = ("ours_compiled", "authors_compiled")
CHANGES: dict[str, Callable[[Any], Any]] = {
    "ours": lambda trunk: trunk,
    "torch_branches": use_torch_branches,
    "authors": use_authors_form,
    "fixed": use_fixed_form,
    "without_adapters": leave_adapters_out,
    "full_fine_tuning": lambda trunk: trunk,
}
EMBEDDING_SIZE = 128
CLASSES = 1000
BATCHES = 4  # rotating batches of images
CHECK_BATCH = 4
LEARNING_RATE = 1e-6  # the weights stay near their start, so that all steps cost the same
# Of gradients through a whole network: a few activations near 0 get another sign by rounding alone. In bfloat16 that
# changes single gradients of every form, ours and plain PyTorch, by up to 23 % on a CPU. On a GPU torch's bfloat16
# products may add up parts of a sum in bfloat16, too (up to 16 % seen in plain PyTorch, 4 % in ours).
TOLERANCE = {
    ("float32", "cpu"): 1e-2,
    ("float32", "cuda"): 1e-2,
    ("bfloat16", "cpu"): 3e-1,
    ("bfloat16", "cuda"): 2.5e-1,
}
CAPTURE_WARMUP = 3


@dataclass(frozen=True)
class StepCase:
    """A training step.

    Attributes:
        model: a timm vision transformer, with random weights.
        batch, image_size: images per step and their side in pixels.
        depth: blocks.
        adapter_dim, drop: r and p of the adapters.
        precision: "float32", or "bfloat16" for autocast.
    """

    model: str = "vit_small_patch16_224"
    batch: int = 8
    image_size: int = 224
    depth: int = 12
    adapter_dim: int = 128
    drop: float = 0.5
    precision: str = "float32"

    @property
    def id(self) -> str:
        return f"{self.model}-B{self.batch}-{self.image_size}px-p{self.drop:g}-{self.precision}"


@dataclass
class Trainee:
    """A model under training."""

    model: UnifiedEmbedder
    proxies: nn.Parameter
    optimizer: torch.optim.Optimizer


class StepWorkload(Workload):
    """One step: forward, cross-entropy against normalised proxies, backward, clipped gradients, AdamW.

    Modes: "step", as a training loop runs it, and on a GPU "graph", the same step captured as a CUDA graph: what the
    device takes for it, however slow the host is.
    """

    device_only = False
    case: StepCase

    def __init__(self, case: StepCase, device: str) -> None:
        super().__init__(case, device)
        torch._dynamo.reset()

    def model(self, contestant: str) -> UnifiedEmbedder:
        """A fresh model of the contestant, on the CPU, the same weights every time."""
        case = self.case
        torch.manual_seed(0)
        trunk: Any = timm.create_model(case.model, num_classes=0, img_size=case.image_size, depth=case.depth)
        form = contestant.removesuffix("_compiled")
        if contestant not in (*CHANGES, *COMPILED):
            raise ValueError(f"unknown contestant {contestant!r}; there are {(*FORMS, *OTHERS, *COMPILED)}")
        if contestant != "full_fine_tuning":
            adapt(trunk, adapter_dim=case.adapter_dim, drop=case.drop)
            for adapter in trunk.adapters():
                nn.init.normal_(adapter.up, std=0.02)  # so that the adapters add something from the start
        CHANGES[form](trunk)
        model = UnifiedEmbedder(trunk, EmbeddingHead(trunk.embed_dim, EMBEDDING_SIZE)).train()
        if contestant in COMPILED:
            model.compile(dynamic=False)
        return model

    @cached_property
    def trainees(self) -> dict[str, Trainee]:
        """Models under training by contestant, filled as they are needed."""
        return {}

    def trainee(self, contestant: str) -> Trainee:
        """The contestant's model with its optimizer, in the middle of its training."""
        if contestant not in self.trainees:
            self.trainees[contestant] = self.new_trainee(contestant)
        return self.trainees[contestant]

    def new_trainee(self, contestant: str, capturable: bool = False) -> Trainee:
        """The contestant's model with its optimizer; ``capturable``: in a CUDA graph."""
        model = self.model(contestant).to(self.device)
        proxies = nn.Parameter(self._proxies().to(self.device))
        optimizer = torch.optim.AdamW([*trainable(model), proxies], lr=LEARNING_RATE, capturable=capturable)
        return Trainee(model, proxies, optimizer)

    @cached_property
    def graphs(self) -> dict[str, tuple[torch.cuda.CUDAGraph, Trainee]]:
        """Captured steps by contestant, filled as they are needed."""
        return {}

    def graph(self, contestant: str) -> torch.cuda.CUDAGraph:
        """The contestant's step on the first batch as a CUDA graph."""
        if contestant not in self.graphs:
            trainee = self.new_trainee(contestant, capturable=True)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # capturing asks for warm-up aside
                for _ in range(CAPTURE_WARMUP):
                    self.step(trainee, *self.images(0))
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step(trainee, *self.images(0))
            self.graphs[contestant] = graph, trainee  # the graph works in the trainee's memory
        return self.graphs[contestant][0]

    @cached_property
    def batches(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Rotating batches of images and labels, filled as they are needed."""
        return {}

    def images(self, index: int) -> tuple[Tensor, Tensor]:
        """Images and labels of step number ``index``."""
        place = index % BATCHES
        if place not in self.batches:
            self.batches[place] = self._batch(place, self.case.batch)
        return self.batches[place]

    def _batch(self, seed: int, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        side = self.case.image_size
        images = torch.randn(size, 3, side, side, generator=generator)
        return images.to(self.device), torch.randint(CLASSES, (size,), generator=generator).to(self.device)

    def _proxies(self) -> Tensor:
        return torch.randn(CLASSES, EMBEDDING_SIZE, generator=torch.Generator().manual_seed(1))

    def loss(self, model: UnifiedEmbedder, proxies: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy against normalised proxies plus the prompts' penalty."""
        lowered = self.case.precision == "bfloat16" and images.dtype is not torch.float64
        with torch.autocast(self.device, torch.bfloat16, enabled=lowered):
            embeddings = model(images)
        logits = 16.0 * embeddings.to(proxies.dtype) @ F.normalize(proxies, dim=-1).T
        return F.cross_entropy(logits, labels) + model.prompt_penalty()

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        if mode == "graph":
            return self.graph(contestant).replay
        return partial(self.step, self.trainee(contestant), *self.images(index))

    def step(self, trainee: Trainee, images: Tensor, labels: Tensor) -> None:
        """One training step."""
        self.loss(trainee.model, trainee.proxies, images, labels).backward()
        parameters = [parameter for group in trainee.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_value_(parameters, 1.0)
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)

    def _results(self, model: UnifiedEmbedder, convert: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Loss and all gradients of one small batch."""
        images, labels = self._batch(99, min(CHECK_BATCH, self.case.batch))
        torch.manual_seed(7)  # the same gates for every form
        loss = self.loss(model, convert(self._proxies()).to(self.device), convert(images), labels)
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients}

    def reference(self) -> dict[str, Tensor]:
        return self._results(self.model("fixed").to(self.device).double(), Tensor.double)

    def check(self, contestant: str, reference: dict[str, Tensor]) -> dict[str, float]:
        results = self._results(self.model(contestant).to(self.device), lambda tensor: tensor)
        if contestant in OTHERS:
            if not results["loss"].isfinite():
                raise DisagreementError("the loss is not finite")
            return {}
        if results.keys() != reference.keys():
            raise DisagreementError(f"gradients of other parameters: {sorted(results.keys() ^ reference.keys())}")
        names = list(reference)
        errors = relative_errors([results[name] for name in names], [reference[name] for name in names], names)
        require_agreement(errors, TOLERANCE[self.case.precision, self.device])
        return {"loss": errors["loss"], "worst gradient": max(errors.values())}

    def limit(self, mode: str, ceilings: Ceilings) -> Limit:
        return Limit(None, "contestant without_adapters")


def plans(settings: Settings) -> list[Plan]:
    """ViT-S/16 as in the paper: small batches on a CPU, the paper's batch on a GPU."""
    everyone = (*FORMS, *OTHERS)
    if settings.device == "cuda":  # where torch computes the frozen branches of all
        everyone = tuple(name for name in everyone if name != "torch_branches")
    if settings.smoke:
        modes = ("step", "graph") if settings.device == "cuda" else ("step",)
        return [Plan(StepCase("vit_tiny_patch16_224", 2, 32, 2, 8), mode, everyone) for mode in modes]
    if settings.device == "cuda":
        case = StepCase(batch=180, precision="bfloat16")
        compiled = COMPILED if settings.full and settings.compiled else ()
        return [Plan(case, "step", (*everyone, *compiled)), Plan(case, "graph", everyone)]
    if settings.full and settings.malloc == "raised" and settings.compiled:
        everyone = (*everyone, *COMPILED)
    result = [Plan(StepCase(batch=8, precision=precision), "step", everyone) for precision in ("float32", "bfloat16")]
    if settings.full and settings.malloc == "raised":
        result.append(Plan(StepCase(batch=32), "step", ("ours", "authors", "full_fine_tuning")))
    return result


SUBJECT = Subject("training_step", StepWorkload, StepCase, plans)
