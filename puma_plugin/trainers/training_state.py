"""Everything a training run needs to continue as if it had never stopped."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.losses import CrossBatchMemory
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from puma_plugin.models.adapted_vit import find_adapted
from puma_plugin.trainers.batch_share import BatchShare
from puma_plugin.utils.atomic import atomic_write

FORMAT = 1
_SHARES = (DistributedDataParallel, DataParallel, BatchShare)


def save_state(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint so that it appears whole or not at all, and can be read without unpickling code.

    Raises:
        TypeError: something in it (of a scheduler, say) is neither tensor, number, string nor container of these.
    """
    with atomic_write(path) as temporary:
        torch.save(state, temporary)
        try:
            torch.load(temporary, map_location="cpu", weights_only=True)
        except Exception as error:
            raise TypeError(
                "the training state holds an object that cannot be loaded safely (weights_only=True), probably a "
                f"scheduler's or optimizer's own; the checkpoint was not written. {error}"
            ) from error


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or no checkpoint of UnifiedTrainer.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint; it is damaged or something else: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of UnifiedTrainer in format {FORMAT}")
    return state


def model_state(model: nn.Module, is_frozen: bool = False) -> dict[str, Any]:
    """Trainable parameters, all persistent buffers, a digest of the frozen parameters (which are not stored).

    And how the model was adapted, if it was.

    Args:
        is_frozen: none is trained, even if it requires a gradient still.
    """
    inner = unwrap(model)
    adapted = find_adapted(inner)
    return {
        "tensors": _kept(inner, is_frozen),
        "frozen": _digest(inner, _frozen(inner, is_frozen)),
        "adaptation": adapted and adapted.adaptation.to_dict(),
    }


def model_tensors(model: nn.Module, is_frozen: bool = False) -> dict[str, Tensor]:
    """The tensors of :func:`model_state`, the model's own."""
    return _kept(unwrap(model), is_frozen)


@torch.no_grad()
def load_model_state(model: nn.Module, state: Mapping[str, Any], is_frozen: bool = False) -> None:
    """Copy stored tensors into a model that they fit."""
    for key, tensor in model_tensors(model, is_frozen).items():
        tensor.copy_(state["tensors"][key])


def _kept(inner: nn.Module, is_frozen: bool) -> dict[str, Tensor]:
    """The model's own tensors that a checkpoint holds."""
    frozen = _frozen(inner, is_frozen)
    return {name: tensor for name, tensor in inner.state_dict().items() if name not in frozen}


def _frozen(inner: nn.Module, is_frozen: bool) -> set[str]:
    return {name for name, p in inner.named_parameters() if is_frozen or not p.requires_grad}


def memory_places(losses: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Where pml's memories of former batches stand, which is not among their buffers."""
    return {
        name: {"queue_idx": int(memory.queue_idx), "has_been_filled": bool(memory.has_been_filled)}
        for name, memory in _memories(losses).items()
    }


def set_memory_places(losses: Mapping[str, nn.Module], places: Mapping[str, Mapping[str, Any]]) -> None:
    """Go on where :func:`memory_places` said."""
    for name, memory in _memories(losses).items():
        memory.queue_idx = places[name]["queue_idx"]
        memory.has_been_filled = places[name]["has_been_filled"]


def _memories(losses: Mapping[str, nn.Module]) -> dict[str, Any]:
    return {
        f"{key}.{name}": part
        for key, loss in losses.items()
        for name, part in loss.named_modules()
        if isinstance(part, CrossBatchMemory)
    }


def plain_figure(name: str, value: Any) -> Any:
    """A figure as a checkpoint can keep it.

    Raises:
        TypeError: it is no figure; ``name`` says which.
    """
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.item() if math.prod(value.shape) == 1 else value.tolist()
    if isinstance(value, Mapping):
        return {_plain_key(name, key): plain_figure(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_figure(f"{name}[{index}]", inner) for index, inner in enumerate(value)]
    if not isinstance(value, bool | int | float | str | None):
        raise TypeError(
            f"evaluate returned {name}, which is {type(value).__name__}: give numbers, strings, arrays, and lists and "
            "dicts of them, as the checkpoint keeps them"
        )
    return value


def _plain_key(name: str, key: Any) -> Any:
    plain = key.item() if isinstance(key, np.generic) else key
    if not isinstance(plain, str | int | float):
        raise TypeError(f"evaluate returned {name} with the key {key!r}: give strings or numbers as keys")
    return plain


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside what shares it out among devices, and inside torch.compile.

    Told by type: a model of the user's own may well have a part called ``module``.
    """
    while isinstance(model, _SHARES) or isinstance(getattr(model, "_orig_mod", None), nn.Module):
        model = model.module if isinstance(model, _SHARES) else model._orig_mod  # type: ignore[assignment]
    return model


def _digest(model: nn.Module, names: set[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if name in names:
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
