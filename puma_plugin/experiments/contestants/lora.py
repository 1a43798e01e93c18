"""LoRA (Hu et al., ICLR 2022) in the attention of timm's vision transformers, by Hugging Face peft: a contestant."""

import importlib.util
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from puma_plugin.models.adapted_module import AdaptedModule, change_class
from puma_plugin.models.freezing import freeze
from puma_plugin.models.support import check_output, difference, find_support

# timm's names of the projections to queries, keys and values: one layer, or three.
TARGETS = ("qkv", "q_proj", "k_proj", "v_proj")


def add_lora(vit: nn.Module, rank: int, alpha: float) -> nn.Module:
    """Freeze a timm vision transformer and add low-rank updates to its attention's queries, keys and values, in place.

    The published method updates queries and values. timm keeps queries, keys and values in one layer, which gets one
    update: they share A, and keys are updated too. B starts at 0, so the model starts as the frozen one.

    Args:
        vit: a timm model that :func:`puma_plugin.adapt` supports.
        rank: width of the update.
        alpha: the update is ``alpha / rank * B A``.

    Returns:
        The same object.

    Raises:
        ImportError: peft is not installed.
        ValueError: the model is not supported, or its attention reads the weights without calling the layer, so that
            an update would have no effect.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    find_support(vit)
    training = vit.training
    freeze(vit)
    before = check_output(vit)
    # peft writes int, and takes any number.
    settings = LoraConfig(
        r=rank, lora_alpha=cast(int, alpha), lora_dropout=0.0, target_modules=_targets(vit), bias="none"
    )
    inject_adapter_in_model(settings, vit)
    layers = {name: module for name, module in vit.named_modules() if isinstance(module, LoraLayer)}
    _check(vit.eval(), layers, before)
    change_class(vit, AdaptedModule)
    return vit.train(training)


def require_peft() -> None:
    """ImportError, with what to install, where peft is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ImportError('model.method lora needs Hugging Face peft: pip install "puma_plugin[contestants]"')


def _targets(vit: Any) -> list[str]:
    """The full names, as the same words may name layers elsewhere."""
    found = [
        f"blocks.{index}.attn.{name}"
        for index, block in enumerate(vit.blocks)
        for name in TARGETS
        if isinstance(getattr(block.attn, name, None), nn.Linear)
    ]
    if not found:
        raise ValueError(f"the attention of {type(vit).__name__} has none of the layers {', '.join(TARGETS)}")
    return found


def _check(vit: Any, layers: Mapping[str, Any], before: torch.Tensor | None) -> None:
    """A fresh update must change nothing, and every updated layer must be called."""
    called: set[str] = set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    try:
        after = check_output(vit)
    finally:
        for hook in hooks:
            hook.remove()
    if before is None or after is None:
        return
    missed = [name for name in layers if name not in called]
    if missed:
        raise ValueError(
            f"LoRA cannot train this {type(vit).__name__}: its attention reads the weights of {missed[0]} without "
            f"calling the layer ({len(missed)} of {len(layers)} layers); choose another method or backbone"
        )
    if difference(before, after) is not None:
        raise ValueError(f"with a fresh LoRA this {type(vit).__name__} does not give its own output")
