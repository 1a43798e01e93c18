"""The model of a finished run, for images that no run knows."""

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from puma_plugin.experiments.contestants.build import build_model, input_properties
from puma_plugin.experiments.contestants.weights import load_weights
from puma_plugin.experiments.data.transforms import AsEvaluated
from puma_plugin.experiments.settings.config import SETTINGS, WEIGHTS, DataConfig, ModelConfig


def load_trained(folder: str | os.PathLike[str]) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Model and input of a run of ``puma train``, as its evaluation used them.

    Args:
        folder: its config.json and model.safetensors are read, and the backbone's weights as configured there.

    Returns:
        The model on the CPU in evaluation mode, images (B, 3, H, W) to embeddings (B, D) of length 1; and the transform
        of a picture of any size and mode to its input (3, H, W) float32.

    Raises:
        ValueError: no finished run, a run of one model per dataset, settings of another version, or weights that do
            not fit.
    """
    place = Path(folder)
    for name in (SETTINGS, WEIGHTS):
        if not (place / name).is_file():
            raise ValueError(f"{place / name} does not exist; give the folder of a run of `puma train` that has ended")
    settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
    config = _configuration(ModelConfig, settings, "model", place)
    data = _configuration(DataConfig, settings, "data", place)
    if config.is_separate:
        raise ValueError(f"{place} holds one model per dataset (model.method separate), there is no one model to load")
    trunk, embedder = build_model(config, seed=0, image_size=data.image_size)
    load_weights(config, trunk, embedder, place / WEIGHTS)
    return nn.Sequential(trunk, embedder).eval(), AsEvaluated(data, *input_properties(trunk, data))


def _configuration(kind: Any, settings: dict[str, Any], part: str, place: Path) -> Any:
    unknown = sorted(set(settings[part]) - {field.name for field in fields(kind)})
    if unknown:
        raise ValueError(
            f"{place / SETTINGS} has the setting {part}.{unknown[0]}, which this version of puma_plugin does not know; "
            "use the version it was trained with"
        )
    return kind(**settings[part])
