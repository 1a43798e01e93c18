"""Small timm models with random weights in which every tensor matters."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn


@pytest.fixture
def make_vit() -> Callable[..., nn.Module]:
    """``make_vit(name, **timm_arguments)``: two blocks, 32 pixels, no classifier, evaluation mode.

    timm starts some layers at values that hide mistakes (layer scale 1e-5, zero biases and registers); all of them get
    random ones here.
    """

    def make(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
        arguments = {"num_classes": 0, "depth": 2, "img_size": 32, **arguments}
        model = timm.create_model(name, **{key: value for key, value in arguments.items() if value is not None})
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or parameter.std() < 1e-3:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture
def randomize() -> Callable[[nn.Module], None]:
    """Give the adapters of an adapted model (all of whose ``up`` start at 0) random weights."""

    def fill(model: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".up"):
                    parameter.normal_(std=0.3)

    return fill
