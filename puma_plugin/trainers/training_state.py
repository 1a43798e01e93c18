"""Everything a training run needs to continue as if it had never stopped."""

import hashlib
import math
import os
import random
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import CrossBatchMemory
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from puma_plugin.trainers.batch_share import BatchShare
from puma_plugin.utils.atomic import atomic_write
from puma_plugin.utils.distributed import is_distributed, rank, world_size

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
    """Trainable parameters, all persistent buffers, and a digest of the frozen parameters (which are not stored).

    Args:
        is_frozen: none is trained, even if it requires a gradient still.
    """
    inner = unwrap(model)
    return {"tensors": _kept(inner, is_frozen), "frozen": _digest(inner, _frozen(inner, is_frozen))}


def require_fitting_model(model: nn.Module, state: Mapping[str, Any], name: str, is_frozen: bool = False) -> None:
    """Compare a model with what :func:`model_state` gave of another.

    Raises:
        ValueError: the tensors' names or shapes differ, or the frozen parameters are others.
    """
    own = model_state(model, is_frozen)
    _require_same_tensors(own["tensors"], state["tensors"], f"models[{name!r}]", own["tensors"].keys())
    if own["frozen"] != state["frozen"]:
        raise ValueError(
            f"the frozen weights of models[{name!r}] are not those of the run that saved the checkpoint: load the same "
            "pretrained weights"
        )


@torch.no_grad()
def load_model_state(model: nn.Module, state: Mapping[str, Any], is_frozen: bool = False) -> None:
    """Copy stored tensors into a model that they fit."""
    for key, tensor in _kept(unwrap(model), is_frozen).items():
        tensor.copy_(state["tensors"][key])


def require_fitting_state(part: Any, state: Mapping[str, Any], name: str) -> None:
    """Compare a loss, miner or optimizer with the ``state_dict()`` of another.

    Raises:
        ValueError: a module's names or the shapes of its parameters differ, or the sizes of an optimizer's groups.
    """
    if isinstance(part, nn.Module):
        # Of buffers and further state a loss may take other shapes than it has.
        weights = {key for key, weight in part.named_parameters() if not is_lazy(weight)}
        _require_same_tensors(part.state_dict(), state, name, weights)
    if isinstance(part, torch.optim.Optimizer):
        stored, own = (
            [len(group["params"]) for group in groups] for groups in (state["param_groups"], part.param_groups)
        )
        if stored != own:
            raise ValueError(
                f"the checkpoint does not fit {name}: groups of {stored} parameters instead of {own}; make the "
                "optimizer as in the run that saved it"
            )


def _require_same_tensors(wanted: Mapping[str, Any], stored: Mapping[str, Any], name: str, sized: Set[str]) -> None:
    """ValueError unless names agree, and the shapes of the tensors that are ``sized``."""
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    both = [key for key in wanted if key in stored and key in sized]
    shapes = [
        f"{key}: {tuple(stored[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in both
        if stored[key].shape != wanted[key].shape
    ]
    if missing or surplus or shapes:
        raise ValueError(
            f"the checkpoint does not fit {name}: missing {missing[:5]}, not expected {surplus[:5]}, other shape "
            f"{shapes[:5]}; build it as in the run that saved it"
        )


def _kept(inner: nn.Module, is_frozen: bool) -> dict[str, Tensor]:
    """The model's own tensors that a checkpoint holds."""
    frozen = _frozen(inner, is_frozen)
    return {name: tensor for name, tensor in inner.state_dict().items() if name not in frozen}


def _frozen(inner: nn.Module, is_frozen: bool) -> set[str]:
    return {name for name, p in inner.named_parameters() if is_frozen or not p.requires_grad}


def data_names(dataset: Any) -> dict[str, list[str]]:
    """What proxies stand for, by their number, as far as the dataset tells: names only, as folders may be moved."""
    told = {what: getattr(dataset, f"{what}_names", None) for what in ("distribution", "class")}
    return {what: [str(name) for name in names] for what, names in told.items() if isinstance(names, list | tuple)}


def require_same_names(stored: Mapping[str, list[str]], own: Mapping[str, list[str]]) -> None:
    """Compare what :func:`data_names` gave of two datasets, where both tell; others may have been added behind.

    Raises:
        ValueError: naming the first distribution or class that differs.
    """
    for what in (what for what in own if what in stored):
        for number, (before, now) in enumerate(zip(stored[what], own[what], strict=False)):
            if before != now:
                raise ValueError(
                    f"{what} {number} was {before!r} in the run that saved the checkpoint and is {now!r} now, so that "
                    "what the loss keeps of each class would be taken for another one's: give the same datasets, by "
                    "the same names and in the same order"
                )


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


def random_state(models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """State of the generators of Python, NumPy, torch and, where they have their own, the gates, of every process."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "gates": {name: generator.get_state() for name, generator in _gate_generators(models).items()},
    }
    if not is_distributed():
        return [state]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, state)
    return gathered


def set_random_state(states: list[dict[str, Any]], models: Mapping[str, nn.Module]) -> None:
    """Restore this process' generators.

    With another number of processes than before they are restored only if all processes had the same state of torch's
    CPU generator, as those that draw for the whole batch and take their share have.
    """
    world = world_size()
    if len(states) != world and not all(torch.equal(state["torch"], states[0]["torch"]) for state in states):
        return
    state = states[rank() if len(states) == world else 0]
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if len(states) == world and len(state["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        for device, words in enumerate(state["cuda"]):
            torch.cuda.set_rng_state(words, device)
    for name, generator in _gate_generators(models).items():
        if name in state["gates"]:
            generator.set_state(state["gates"][name])


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


def _gate_generators(models: Mapping[str, nn.Module]) -> dict[str, torch.Generator]:
    return {
        f"{key}.{name}": module.gate_generator
        for key, model in models.items()
        for name, module in unwrap(model).named_modules()
        if isinstance(getattr(module, "gate_generator", None), torch.Generator)
    }


def _digest(model: nn.Module, names: set[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if name in names:
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
