"""The metric losses by name, with their usual settings and what each needs beside it: a miner, images per class."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as pml_losses
from torch import nn

from puma_plugin import losses
from puma_plugin.experiments.settings.config import LossConfig


@dataclass(frozen=True)
class Usual:
    """How a loss is usually used.

    Attributes:
        arguments: of the loss.
        miner: name in pytorch_metric_learning.miners, or None.
        miner_arguments: of the miner.
        m: images per class in a batch; None where classes need not repeat.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    miner: str | None = None
    miner_arguments: Mapping[str, Any] = field(default_factory=dict)
    m: int | None = None


# The losses that the paper compares, with the values of its public code. That code gives MultiSimilarityLoss the
# distance weighted miner and MarginLoss the multi-similarity miner; here each has the miner of its own paper (the other
# is `loss.miner`). Triplet, multi-similarity and margin loss see pairs of a batch only, so classes must repeat in it.
USUAL: dict[str, Usual] = {
    "TripletMarginLoss": Usual({"margin": 0.05, "distance": "CosineSimilarity"}, "BatchHardMiner", m=4),
    "MultiSimilarityLoss": Usual({"alpha": 2, "beta": 50, "base": 0.5}, "MultiSimilarityMiner", {"epsilon": 0.1}, m=4),
    "MarginLoss": Usual(
        {"margin": 0.2, "nu": 0, "beta": 1.2},
        "DistanceWeightedMiner",
        {"cutoff": 0.5, "nonzero_loss_cutoff": 1.4},
        m=4,
    ),
    "ProxyAnchorLoss": Usual({"margin": 0.1, "alpha": 32}),
    "CosFaceLoss": Usual({"margin": 0.35, "scale": 64}),
    # In degrees, 0.5 rad.
    "ArcFaceLoss": Usual({"margin": 28.6, "scale": 64}),
    "SoftTripleLoss": Usual({"centers_per_class": 10, "la": 20, "gamma": 0.1, "margin": 0.01}),
    "CurricularFaceLoss": Usual({"margin": 0.3, "scale": 32.0}),
}


def _loss_class(name: str) -> type[nn.Module]:
    cls = getattr(losses, name, None) or getattr(pml_losses, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise ValueError(
            f"loss.name is {name!r}; give CurricularFaceLoss or a loss of pytorch_metric_learning.losses, such as "
            f"{', '.join(other for other in USUAL if other != 'CurricularFaceLoss')}"
        )
    return cls


def _usual(name: str) -> Usual:
    """Losses that nobody wrote down here are used as they come; without class weights they compare pairs."""
    if name in USUAL:
        return USUAL[name]
    return Usual(m=None if "num_classes" in _accepted(_loss_class(name)) else 4)


def _accepted(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in inspect.signature(base).parameters}


def _with_distance(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A distance is given by its name in pytorch_metric_learning.distances."""
    made = dict(arguments)
    if isinstance(made.get("distance"), str):
        cls = getattr(distances, made["distance"], None)
        if not (inspect.isclass(cls) and issubclass(cls, distances.BaseDistance)):
            raise ValueError(
                f"{where}.distance is {made['distance']!r}; give a class of pytorch_metric_learning.distances, such as "
                "CosineSimilarity or LpDistance"
            )
        made["distance"] = cls()
    return made


def make_loss(config: LossConfig, num_classes: int, embedding_size: int) -> nn.Module:
    """The loss by name, this package's first, then pytorch-metric-learning's.

    Raises:
        ValueError: for an unknown name or arguments that the loss does not take.
    """
    cls = _loss_class(config.name)
    arguments = _with_distance({**_usual(config.name).arguments, **config.arguments}, "loss.arguments")
    accepted = _accepted(cls)
    for name, value in (("num_classes", num_classes), ("embedding_size", embedding_size)):
        if name in accepted:
            arguments.setdefault(name, value)
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"loss.arguments {config.arguments} do not fit {config.name} ({error})") from error


def make_miner(config: LossConfig) -> nn.Module | None:
    """The miner that chooses pairs or triplets of a batch; None where the loss takes all.

    Raises:
        ValueError: for an unknown name or arguments that the miner does not take.
    """
    usual = _usual(config.name)
    name = usual.miner if config.miner == "usual" else config.miner
    if name is None or name == "none":
        if config.miner_arguments:
            raise ValueError(f"loss.miner_arguments are given, but {config.name} has no miner; give loss.miner as well")
        return None
    cls: Any = getattr(miners, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, miners.BaseMiner)):
        raise ValueError(
            f"loss.miner is {name!r}; give usual, none, or a class of pytorch_metric_learning.miners, such as "
            "MultiSimilarityMiner"
        )
    arguments = {**(usual.miner_arguments if name == usual.miner else {}), **config.miner_arguments}
    try:
        return cast(nn.Module, cls(**_with_distance(arguments, "loss.miner_arguments")))
    except TypeError as error:
        raise ValueError(f"loss.miner_arguments {config.miner_arguments} do not fit {name} ({error})") from error


def images_per_class(config: LossConfig) -> int | None:
    """How many images of a class a batch holds; None where classes need not repeat.

    Raises:
        ValueError: the loss compares pairs, and a batch would hold one image of each class.
    """
    usual = _usual(config.name).m
    if config.images_per_class is None:
        return usual
    if config.images_per_class == 1 and usual is not None:
        raise ValueError(
            f"loss.images_per_class is 1, but {config.name} compares images of one class within a batch and would "
            f"never see two; give 2 or more, or null for its usual {usual}"
        )
    return config.images_per_class
