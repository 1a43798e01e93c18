"""A network with each kind of state that a checkpoint treats in its own way."""

import torch
from torch import nn


def net(width: int = 3) -> nn.Sequential:
    """A frozen layer, a norm with statistics, a trained layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    layers[0].requires_grad_(False)
    return layers
