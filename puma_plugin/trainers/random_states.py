"""The generators that a training draws from, of every process."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from puma_plugin.trainers.training_state import unwrap
from puma_plugin.utils.distributed import is_distributed, rank, world_size


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


def _gate_generators(models: Mapping[str, nn.Module]) -> dict[str, torch.Generator]:
    return {
        f"{key}.{name}": module.gate_generator
        for key, model in models.items()
        for name, module in unwrap(model).named_modules()
        if isinstance(getattr(module, "gate_generator", None), torch.Generator)
    }
