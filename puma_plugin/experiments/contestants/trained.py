"""The model of a finished run, for images that no run knows."""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from puma_plugin.experiments.contestants.build import build_model, input_properties
from puma_plugin.experiments.contestants.weights import load_weights
from puma_plugin.experiments.data.transforms import AsEvaluated
from puma_plugin.experiments.settings.config import SETTINGS, WEIGHTS, DataConfig, ModelConfig
from puma_plugin.models.adapted_vit import SEEDING
from puma_plugin.utils import read_json
from puma_plugin.utils.paths import full_path


def load_trained(
    folder: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None
) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Model and input of a run of ``puma train``, as its evaluation used them.

    Args:
        folder: its config.json and model.safetensors are read, and the backbone's weights as configured there.
        weights: a file of these weights where they lie elsewhere now; whether they are the same is checked.

    Returns:
        The model on the CPU in evaluation mode, images (B, 3, H, W) to embeddings (B, D) of length 1; and the transform
        of a picture of any size and mode to its input (3, H, W) float32.

    Raises:
        ValueError: no finished run, a run of one model per dataset, settings that are damaged or of another version,
            or weights that do not fit.
    """
    place = Path(full_path(folder))
    for name in (SETTINGS, WEIGHTS):
        if not (place / name).is_file():
            raise ValueError(f"{place / name} does not exist; give the folder of a run of `puma train` that has ended")
    settings = read_json(place / SETTINGS)
    config = _configuration(ModelConfig, settings, "model", place)
    data = _configuration(DataConfig, settings, "data", place)
    if config.is_separate:
        raise ValueError(f"{place} holds one model per dataset (model.method separate), there is no one model to load")
    if weights is not None:
        config = replace(config, weights=os.fspath(weights))
    elif config.weights not in ("pretrained", "none") and not os.path.isfile(full_path(config.weights)):
        raise ValueError(
            f"the backbone's weights of {place} were in {config.weights}, which is no file here; give their place now, "
            "load_trained(folder, weights=...)"
        )
    # Building seeds torch's generators; those are the caller's.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with SEEDING, torch.random.fork_rng(devices):
        trunk, embedder = build_model(config, seed=0, image_size=data.image_size)
    load_weights(config, trunk, embedder, place / WEIGHTS)
    return nn.Sequential(trunk, embedder).eval(), AsEvaluated(data, *input_properties(trunk, data))


def _configuration(kind: Any, settings: Any, part: str, place: Path) -> Any:
    if not isinstance(settings, dict) or not isinstance(settings.get(part), dict):
        raise ValueError(f"{place / SETTINGS} is damaged: it has no settings {part}; give the folder of another run")
    unknown = sorted(set(settings[part]) - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(
            f"{place / SETTINGS} has the setting {part}.{unknown[0]}, which this version of puma_plugin does not know; "
            "use the version it was trained with"
        )
    try:
        return kind(**settings[part])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place / SETTINGS} cannot be used ({error})") from error
