"""PUMA for pytorch-metric-learning: one embedding model for many heterogeneous image datasets.

Method: S. Kim, D. Kim, S. Kwak, "Learning Unified Distance Metric Across Diverse Data Distributions with
Parameter-Efficient Transfer Learning", WACV 2025 (arXiv 2309.08944).

Importing the package imports nothing heavy: each name below is loaded when first used, and only the folders that mirror
pytorch-metric-learning (losses, regularizers, samplers, testers, trainers) need it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puma_plugin import datasets as datasets
    from puma_plugin import evaluation as evaluation
    from puma_plugin import losses as losses
    from puma_plugin import models as models
    from puma_plugin import ops as ops
    from puma_plugin import regularizers as regularizers
    from puma_plugin import samplers as samplers
    from puma_plugin import testers as testers
    from puma_plugin import trainers as trainers
    from puma_plugin.experiments.contestants.trained import load_trained
    from puma_plugin.models import (
        EmbeddingHead,
        PromptPool,
        StochasticAdapter,
        UnifiedEmbedder,
        adapt,
        eject,
        load_adapter,
        save_adapter,
    )
    from puma_plugin.registry import register, unregister

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(
        (
            "EmbeddingHead",
            "PromptPool",
            "StochasticAdapter",
            "UnifiedEmbedder",
            "adapt",
            "eject",
            "load_adapter",
            "save_adapter",
        ),
        "puma_plugin.models",
    ),
    "load_trained": "puma_plugin.experiments.contestants.trained",
    **dict.fromkeys(("register", "unregister"), "puma_plugin.registry"),
}
_FOLDERS = (
    "datasets",
    "evaluation",
    "losses",
    "models",
    "ops",
    "regularizers",
    "samplers",
    "testers",
    "trainers",
)

__all__ = [
    "EmbeddingHead",
    "PromptPool",
    "StochasticAdapter",
    "UnifiedEmbedder",
    "__version__",
    "adapt",
    "eject",
    "load_adapter",
    "load_trained",
    "register",
    "save_adapter",
    "unregister",
]


if not TYPE_CHECKING:  # a type checker would take any name to be there

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(importlib.import_module(_HOME[name]), name)
        if name in _FOLDERS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_FOLDERS})
