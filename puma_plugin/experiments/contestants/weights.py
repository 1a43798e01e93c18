"""The trained weights of a run, whatever the method: an adapter file, or the trained tensors of trunk and head."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from puma_plugin.experiments.settings.config import ModelConfig
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder, load_adapter, save_adapter
from puma_plugin.models.adapted_vit import AdaptedViT
from puma_plugin.models.fingerprint import rounded_bytes
from puma_plugin.utils.tensor_files import DamagedFileError, read_tensors, write_tensors

FORMAT = "puma_plugin run 4"

_OWN_CONFIGURATION = "give the run's own configuration, as in --config RUN/config.json"


def _tensors(trunk: nn.Module, embedder: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: trained weights, and buffers such as the statistics of batch norms."""
    trained = {f"trunk.{name}": weight for name, weight in trunk.named_parameters() if weight.requires_grad}
    weights = dict(trunk.named_parameters(remove_duplicate=False))
    buffers = {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items() if name not in weights}
    return {**trained, **buffers, **{f"head.{name}": weight for name, weight in embedder.named_parameters()}}


def _description(config: ModelConfig, trunk: nn.Module, extra: Mapping[str, Any]) -> dict[str, str]:
    """What a file has to agree with beside names and shapes of its tensors."""
    total = hashlib.sha256()
    for name, weight in sorted(trunk.named_parameters()):
        if not weight.requires_grad:
            total.update(name.encode())
            total.update(rounded_bytes(weight))
    settings: dict[str, Any] = dict(extra)
    if config.method == "lora":
        settings["lora_alpha"] = config.lora_alpha
    return {
        "method": config.method,
        "backbone": json.dumps(config.backbone),
        "settings": json.dumps(settings, sort_keys=True),
        "frozen": total.hexdigest(),
    }


def save_weights(
    config: ModelConfig, trunk: nn.Module, embedder: nn.Module, path: Path, extra: Mapping[str, Any] | None = None
) -> None:
    """Write what was trained: for adapted models `save_adapter`'s file, else trunk (if trained) and head tensors.

    Buffers of the trunk, which training moves without gradients (batch norms' statistics), go with it.

    Args:
        extra: what else the file has to be read with, as JSON types.
    """
    if isinstance(trunk, AdaptedViT):
        save_adapter(UnifiedEmbedder(trunk, cast(EmbeddingHead, embedder)), path)
        return
    metadata = {"puma_run": FORMAT, **_description(config, trunk, extra or {})}
    write_tensors(path, _tensors(trunk, embedder), metadata)


def load_weights(
    config: ModelConfig, trunk: nn.Module, embedder: nn.Module, path: Path, extra: Mapping[str, Any] | None = None
) -> None:
    """Load what :func:`save_weights` wrote for the same model configuration.

    Raises:
        ValueError: if the file is missing, damaged, or of another method, backbone or size; nothing is loaded then.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the model.safetensors of a run")
    if isinstance(trunk, AdaptedViT):
        try:
            load_adapter(UnifiedEmbedder(trunk, cast(EmbeddingHead, embedder)), path)
        except DamagedFileError:
            raise
        except ValueError as error:
            raise ValueError(f"{error}; {_OWN_CONFIGURATION}") from error
        return
    metadata, tensors = read_tensors(path)
    _check(metadata, _description(config, trunk, extra or {}), path)
    own = _tensors(trunk, embedder)
    odd = sorted(set(own) ^ set(tensors)) or sorted(
        name
        for name in own
        if own[name].shape != tensors[name].shape or own[name].is_floating_point() != tensors[name].is_floating_point()
    )
    if odd:
        raise ValueError(f"{path} does not fit the configured model: {odd[0]} differs ({len(odd)} such tensors)")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])


def _check(found: Mapping[str, str], wanted: Mapping[str, str], path: Path) -> None:
    if "puma_run" not in found:
        raise ValueError(
            f"{path} is not a file of `puma train` with method {wanted['method']!r}"
            + (", it holds adapters" if "adaptation" in found else "")
            + f"; {_OWN_CONFIGURATION}"
        )
    if found["puma_run"] != FORMAT:
        raise ValueError(
            f"{path} has the format {found['puma_run']!r}, this puma_plugin reads {FORMAT!r}: use the version it was "
            "trained with"
        )
    if any(found.get(name) != wanted[name] for name in ("method", "backbone")):
        raise ValueError(
            f"{path} is of method {found.get('method')!r} on backbone {found.get('backbone')}, the configuration asks "
            f"for {wanted['method']!r} on {wanted['backbone']}; {_OWN_CONFIGURATION}"
        )
    if found.get("settings") != wanted["settings"]:
        raise ValueError(
            f"{path} was trained with {found.get('settings')}, the configuration has {wanted['settings']}; "
            f"{_OWN_CONFIGURATION}"
        )
    if found.get("frozen") != wanted["frozen"]:
        raise ValueError(
            f"{path} was trained on another backbone: the weights that stayed frozen differ; give the model.weights of "
            "the run"
        )
