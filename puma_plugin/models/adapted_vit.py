"""What an adapted vision transformer can do on top of its own class."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from puma_plugin.models.adapted_module import AdaptedModule
from puma_plugin.models.adapter import StochasticAdapter
from puma_plugin.models.arguments import require_float
from puma_plugin.models.config import AdaptationConfig
from puma_plugin.models.prompt_pool import PromptPool

SEEDING = threading.RLock()
"""Held by whoever seeds torch's default generators for a while, which are one for all threads."""


class AdaptedViT(AdaptedModule):
    """A frozen vision transformer with stochastic adapters in its blocks (arXiv 2309.08944).

    Everything that the original class offers works as before, as do ``torch.compile`` (fullgraph), ``torch.export``,
    activation checkpointing, DistributedDataParallel, pickle and deepcopy; not ``torch.jit.script`` and
    ``torch.fx.symbolic_trace``, which timm's ``create_feature_extractor`` uses; ``torch.jit.trace`` and ``torch.func``
    inside ``puma_plugin.ops.plain_pytorch()`` only. Gates are drawn from torch's default
    random number generator (seed it differently in every process), or, if ``gate_generator`` is set to a CPU
    ``torch.Generator``, they follow from that alone. With such a generator every pass draws new gates: do not compile
    the model, spread it by ``DataParallel``, or recompute it as a whole (``checkpoint(model, images)``;
    ``set_grad_checkpointing()``, which recomputes blocks, and ``BatchShare`` are right with both).

    With other tools: int8 dynamic quantisation of the frozen layers is for inference only. LoRA of Hugging Face peft
    goes on top with ``peft.inject_adapter_in_model``, which freezes all but LoRA, so give ``adapters()`` and
    ``prompt_pool`` their ``requires_grad_()`` back; such a model is saved by its state dict, not by ``save_adapter``.
    """

    adaptation: AdaptationConfig
    prompt_pool: PromptPool | None
    gate_generator: torch.Generator | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" or (name == "_pos_embed" and self.prompt_pool is not None):
            raise ValueError(
                f"{name} of an adapted model cannot be replaced on the instance, as "
                + (
                    "adapters would no longer know whether they are trained: what is frozen stays in evaluation mode "
                    "by itself, and adapters with drop=0 draw no gates"
                    if name == "train"
                    else "prompts would no longer come in: adapt(pool_size=0) does without them"
                )
            )
        super().__setattr__(name, value)

    def adapters(self) -> list[StochasticAdapter]:
        """All adapters, from the first block to the last."""
        return [module for module in self.modules() if isinstance(module, StochasticAdapter)]

    def draw_gates(self, samples: int) -> list[Tensor | None]:
        """Gates (samples,) of each adapter for one training pass, on the CPU.

        They are those that the next pass of so many samples on the CPU would draw, from ``gate_generator`` or, without
        one, torch's default CPU generator (patch dropout, where there is one, draws from it before them). None where
        every gate is 1.
        """
        return self._with_own_gates(
            lambda: [adapter.draw_gate(samples, torch.device("cpu")) for adapter in self.adapters()]
        )

    @contextlib.contextmanager
    def given_gates(self, gates: Sequence[Tensor | None]) -> Iterator[None]:
        """Inside, training passes use these gates, one (B,) per adapter; an adapter given None draws its own.

        Nothing is drawn from ``gate_generator`` inside, so that a pass may be computed once more: the backward pass of
        ``checkpoint(model, images)`` has to run inside as well.

        Raises:
            ValueError: another number of gates; or blocks that are computed once more in the backward pass
                (``set_grad_checkpointing()``), when these gates are no longer there.
        """
        adapters = self.adapters()
        if len(gates) != len(adapters):
            raise ValueError(f"gates must be one per adapter, {len(adapters)}, got {len(gates)}")
        if self.training and any(gate is not None for gate in gates) and self._recomputes_blocks():
            raise ValueError(
                "gates cannot be given to a model whose blocks are computed once more in the backward pass, where "
                "others would be drawn: set_grad_checkpointing(False), and let BatchShare(model, max_batch) save memory"
            )
        before = [adapter.given_gate for adapter in adapters]
        generator, self.gate_generator = self.gate_generator, None
        for adapter, gate in zip(adapters, gates, strict=True):
            adapter.given_gate = gate
        try:
            yield
        finally:
            self.gate_generator = generator
            for adapter, gate in zip(adapters, before, strict=True):
                adapter.given_gate = gate

    def _recomputes_blocks(self) -> bool:
        wrapped = any(type(block).__name__ == "CheckpointWrapper" for block in self.blocks)  # type: ignore[union-attr]
        return bool(getattr(self, "grad_checkpointing", False)) or wrapped

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Every parameter that takes a gradient: adapters, prompts, and whatever else was set to."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def param_groups(
        self,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        adapter_factor: float = 10.0,
        prompt_factor: float = 10.0,
        other_factor: float = 1.0,
    ) -> list[dict[str, Any]]:
        """Optimizer groups with the paper's learning rates: ``lr`` times a factor, 10 for adapters and for prompts.

        ``other_factor`` is for parameters that are neither but take a gradient, such as a classifier put in later. The
        proxies of the loss are not in the model: the paper trains them with 10,000 times ``lr``.

        Returns:
            Groups with the keys ``name``, ``params``, ``lr``, ``weight_decay``; none without parameters.
        """
        groups = {
            "adapters": [parameter for adapter in self.adapters() for parameter in adapter.parameters()],
            "prompts": [] if self.prompt_pool is None else list(self.prompt_pool.parameters()),
        }
        known = {id(parameter) for members in groups.values() for parameter in members}
        groups["other"] = [parameter for parameter in self.parameters() if id(parameter) not in known]
        factors = {"adapters": adapter_factor, "prompts": prompt_factor, "other": other_factor}
        return optimizer_groups(groups, factors, lr, weight_decay)

    def prompt_penalty(self, weight: float = 1e-6) -> Tensor:
        """The pool's orthogonality penalty, a scalar to add to the loss; 0 without prompts."""
        if self.prompt_pool is None:
            return next(self.parameters()).new_zeros(())
        return self.prompt_pool.penalty(weight)

    def prompt_weights(self, images: Tensor) -> Tensor:
        """Weights (B, M) of the pool's prompts for images (B, channels, H, W).

        Raises:
            ValueError: the model has no prompts.
        """
        raise ValueError("prompt_weights() needs prompts, but this model was adapted with pool_size=0")

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_own_gates(super().forward_features, *args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_own_gates(super().forward_intermediates, *args, **kwargs)  # type: ignore[misc]

    def _with_own_gates(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one pass; in training let its random numbers follow from ``gate_generator``, if there is one.

        That one seeds torch's default generator for the pass, instead of being drawn from directly, because the default
        generator is what activation checkpointing saves and restores: the recomputation sees the same gates.
        """
        if self.gate_generator is None or not self.training:
            return forward(*args, **kwargs)
        seed = int(torch.randint(2**63 - 1, (), generator=self.gate_generator, device="cpu"))
        device = next(self.parameters()).device
        with SEEDING, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            return forward(*args, **kwargs)

    def extra_repr(self) -> str:
        count = sum(p.numel() for p in self.trainable_parameters())
        total = sum(p.numel() for p in self.parameters())
        adapters = self.adapters()
        lines = [f"adapters: {len(adapters)}" + (f" of {adapters[0].extra_repr()}" if adapters else "")]
        if self.prompt_pool is not None:
            lines.append(f"prompts: {self.prompt_pool.extra_repr()}")
        lines.append(f"trainable: {count:,} of {total:,} parameters ({100 * count / total:.2f} %)")
        original = super().extra_repr()
        return "\n".join([original, *lines] if original else lines)


class PromptedViT(AdaptedViT):
    """An adapted vision transformer whose first block also sees the prompt tokens of the image.

    The prompts stand after the class and register tokens and before the patches. They carry the position embedding of
    the class token, where that has one. They are taken out again after the last norm, before any pooling. An
    ``attn_mask`` given by the caller has to cover them.
    """

    prompt_pool: PromptPool
    num_prefix_tokens: int
    pos_embed: nn.Parameter | None
    patch_embed: Any

    def prompt_query(self, patches: Tensor) -> Tensor:
        """Query (B, C), no gradient: half of mean plus maximum over the patch embedding (B, N, C) or (B, H, W, C)."""
        patches = patches.detach().flatten(1, -2)
        dtype = torch.promote_types(patches.dtype, torch.float32)
        return (patches.mean(dim=1, dtype=dtype) + patches.amax(dim=1).to(dtype)) / 2

    def prompt_weights(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.prompt_pool(self.prompt_query(self.patch_embed(images)))[1]

    def _pos_embed(self, x: Tensor) -> Any:
        embedded = super()._pos_embed(x)  # type: ignore[misc]
        prompt, _ = self.prompt_pool(self.prompt_query(x))
        if isinstance(embedded, tuple):  # Eva returns its rotary embedding as well
            tokens, *rest = embedded
            return self._insert(tokens, prompt), *rest
        return self._insert(embedded, prompt)

    def _insert(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        if self.cls_token is not None and self.pos_embed is not None and not self.no_embed_class:
            prompt = prompt + self.pos_embed[:, :1]
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        return torch.cat([prefix, prompt.to(tokens.dtype), patches], dim=1)

    def _remove(self, tokens: Tensor) -> Tensor:
        start = self.num_prefix_tokens
        return torch.cat([tokens[:, :start], tokens[:, start + self.prompt_pool.prompt_length :]], dim=1)

    def forward_features(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._remove(super().forward_features(*args, **kwargs))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *more: Any,
        **options: Any,
    ) -> Any:
        """As timm's, without the prompt tokens."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        # As sequences, because with the prompts among them the patches do not fill an image.
        result = super().forward_intermediates(
            x, indices, return_prefix_tokens, norm, stop_early, "NLC", intermediates_only, *more, **options
        )
        size = self.patch_embed.dynamic_feat_size(tuple(x.shape[-2:])) if output_fmt == "NCHW" else None

        def clean(entry: Any) -> Any:
            if isinstance(entry, tuple):
                return clean(entry[0]), entry[1]
            patches = entry[:, self.prompt_pool.prompt_length :]
            if size is None:
                return patches
            return patches.unflatten(1, size).permute(0, 3, 1, 2).contiguous()

        if isinstance(result, dict):
            result["image_intermediates"] = [clean(entry) for entry in result["image_intermediates"]]
            if "image_features" in result:
                result["image_features"] = self._remove(result["image_features"])
            return result
        if intermediates_only:
            return [clean(entry) for entry in result]
        features, entries = result
        return self._remove(features), [clean(entry) for entry in entries]


def find_adapted(module: nn.Module) -> AdaptedViT | None:
    """The adapted model that ``module`` is or wraps (``torch.compile``, DataParallel, ...); None if there is none."""
    return next((inner for inner in module.modules() if isinstance(inner, AdaptedViT)), None)


def without_wrappers(module: nn.Module) -> nn.Module:
    """The model inside what computes the same as it.

    ``torch.compile``, DistributedDataParallel, DataParallel, AveragedModel, a Sequential of one, and what says so of
    itself (``is_transparent``).
    """
    while True:
        if isinstance(module, DistributedDataParallel | DataParallel | AveragedModel):
            module = module.module
        elif getattr(type(module), "is_transparent", False):
            module = cast(Any, module).module
        elif isinstance(module, nn.Sequential) and len(module) == 1:
            module = module[0]
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def require_mode(module: nn.Module, training: bool) -> None:
    """Look whether ``train()`` or ``eval()`` has reached the adapters, in what holds them.

    Raises:
        ValueError: it has not, as something replaces these methods, and gates are drawn in the one mode only: by
            adapters with a ``drop``. Of frozen ones it is no fault that they are not put into training mode.
    """
    adapters = [part for part in module.modules() if isinstance(part, StochasticAdapter) and part.drop > 0]
    if training:
        adapters = [part for part in adapters if any(weight.requires_grad for weight in part.parameters())]
    if any(part.training is not training for part in adapters):
        call, mode = ("train()", "evaluation") if training else ("eval()", "training")
        raise ValueError(
            f"{call} of this {type(module).__name__} leaves its adapters in {mode} mode: some module of it replaces "
            "train() or eval(). Take that away: what adapt() froze stays in evaluation mode by itself, and adapters "
            "with drop=0 draw no gates"
        )


def refuse_several_adapted(module: nn.Module, what: str) -> None:
    """What is done for "the" adapted model in a module would be done for the first one only.

    Raises:
        ValueError: there are several.
    """
    count = sum(isinstance(inner, AdaptedViT) for inner in module.modules())
    if count > 1:
        raise ValueError(
            f"{what} needs one adapted model, but {type(module).__name__} holds {count}: take each by itself"
        )


def optimizer_groups(
    parameters: Mapping[str, list[nn.Parameter]], factors: Mapping[str, float], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups ``lr * factor`` of the parameters that take a gradient; groups left empty are dropped.

    Raises:
        TypeError, ValueError: a rate, decay or factor is negative or no number.
    """
    require_float("lr", lr, 0.0)
    require_float("weight_decay", weight_decay, 0.0)
    groups = []
    for name, members in parameters.items():
        rate = lr * require_float(f"factor of {name}", factors[name], 0.0)
        trainable = [parameter for parameter in members if parameter.requires_grad]
        if trainable:
            groups.append({"name": name, "params": trainable, "lr": rate, "weight_decay": weight_decay})
    return groups
