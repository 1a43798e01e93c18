"""The prompt pool's own penalty in the place where pml trainers take regularizers."""

from typing import Any

import torch
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor

from puma_plugin.models.adapted_vit import AdaptedViT, find_adapted, refuse_several_adapted


class PromptPenalty(BaseRegularizer):
    """``model.prompt_penalty()`` as a pml regularizer, for trainers that know nothing of prompts.

    Example:
        >>> loss = CurricularFaceLoss(100, 128, embedding_regularizer=PromptPenalty(trunk))

    What it is called with (embeddings or weights) is ignored. The model is referred to, not owned: it appears neither
    in the parameters nor in the state of the loss. A deep copy of the loss refers to the same model; where the model is
    copied along, before the loss (both in one module, the model first), to the copy.

    Args:
        model: an adapted model or UnifiedEmbedder; it, or its trunk, may be inside DistributedDataParallel,
            DataParallel, torch.compile or a container.
        **kwargs: pml's.

    Raises:
        ValueError: nothing in the model is adapted, or several models in it are.
    """

    def __init__(self, model: torch.nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._reference = _Reference(require_adapted(model))

    @property
    def model(self) -> AdaptedViT:
        """The adapted model whose prompts are looked at."""
        return self._reference.model

    def compute_loss(self, x: Tensor) -> dict[str, dict[str, Any]]:
        penalty = self.model.prompt_penalty()
        return {"loss": {"losses": penalty, "indices": None, "reduction_type": "already_reduced"}}


class _Reference:
    """Keeps torch from registering the model as a submodule of the loss, and copies of the loss from copying it."""

    def __init__(self, model: AdaptedViT) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Reference":
        copied = memo.get(id(self.model))
        return self if copied is None else _Reference(copied)


def require_adapted(model: torch.nn.Module) -> AdaptedViT:
    """The adapted model in ``model``, which may be inside wrappers and containers.

    Raises:
        ValueError: nothing in it is adapted, or several models in it are.
    """
    adapted = find_adapted(model)
    if adapted is None:
        raise ValueError(
            f"{type(model).__name__} is not adapted, nothing in it has a prompt_penalty(): call puma_plugin.adapt; to "
            "train a model without adapters leave the penalty out (prompt_penalty_weight=0 in UnifiedTrainer)"
        )
    refuse_several_adapted(model, "the prompt penalty")
    return adapted
