"""The trained weights of a run, whatever the method: an adapter file, or the trained tensors of trunk and head."""

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from puma_plugin.experiments.config import ModelConfig
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder, load_adapter, save_adapter
from puma_plugin.utils import atomic_write

FORMAT = "puma_plugin run 1"
ADAPTED = ("puma", "adapters")


def _tensors(trunk: nn.Module, embedder: nn.Module) -> dict[str, torch.Tensor]:
    named = {f"trunk.{name}": weight for name, weight in trunk.named_parameters() if weight.requires_grad}
    return {**named, **{f"head.{name}": weight for name, weight in embedder.named_parameters()}}


def save_weights(config: ModelConfig, trunk: nn.Module, embedder: nn.Module, path: Path) -> None:
    """Write what was trained: for adapted models `save_adapter`'s file, else trunk (if trained) and head tensors."""
    if config.method in ADAPTED:
        save_adapter(UnifiedEmbedder(trunk, cast(EmbeddingHead, embedder)), path)
        return
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in _tensors(trunk, embedder).items()}
    metadata = {"format": "pt", "puma_run": FORMAT, "method": config.method, "backbone": json.dumps(config.backbone)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_weights(config: ModelConfig, trunk: nn.Module, embedder: nn.Module, path: Path) -> None:
    """Load what :func:`save_weights` wrote for the same model configuration.

    Raises:
        ValueError: if the file is missing, damaged, or of another method, backbone or size; nothing is loaded then.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the model.safetensors of a run")
    if config.method in ADAPTED:
        load_adapter(UnifiedEmbedder(trunk, cast(EmbeddingHead, embedder)), path)
        return
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from error
    found = (metadata.get("puma_run"), metadata.get("method"), metadata.get("backbone"))
    wanted = (FORMAT, config.method, json.dumps(config.backbone))
    if found != wanted:
        raise ValueError(
            f"{path} is of method {found[1]!r} on backbone {found[2]}, the configuration asks for {config.method!r} on "
            f"{wanted[2]}; give the run's own configuration"
        )
    own = _tensors(trunk, embedder)
    odd = sorted(set(own) ^ set(tensors)) or sorted(name for name in own if own[name].shape != tensors[name].shape)
    if odd:
        raise ValueError(f"{path} does not fit the configured model: {odd[0]} differs ({len(odd)} such tensors)")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])
