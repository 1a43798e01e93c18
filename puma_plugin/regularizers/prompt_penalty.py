"""The prompt pool's own penalty in the place where pml trainers take regularizers."""

from typing import Any

import torch
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor

from puma_plugin.models import UnifiedEmbedder


class PromptPenalty(BaseRegularizer):
    """``model.prompt_penalty()`` as a pml regularizer, for trainers that know nothing of prompts.

    Example:
        >>> loss = CurricularFaceLoss(100, 128, embedding_regularizer=PromptPenalty(trunk))

    What it is called with (embeddings or weights) is ignored. The model is referred to, not owned: it appears neither
    in the parameters nor in the state of the loss.

    Args:
        model: an adapted model or UnifiedEmbedder, bare or inside DistributedDataParallel.
        **kwargs: pml's.

    Raises:
        ValueError: the model has no ``prompt_penalty()``.
    """

    def __init__(self, model: torch.nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        find_prompt_penalty(model)
        self._reference = _Reference(model)

    def compute_loss(self, x: Tensor) -> dict[str, dict[str, Any]]:
        penalty = find_prompt_penalty(self._reference.model)()
        return {"loss": {"losses": penalty, "indices": None, "reduction_type": "already_reduced"}}


class _Reference:
    """Keeps torch from registering the model as a submodule of the loss, and copies of the loss from copying it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Reference":
        return self


def find_prompt_penalty(model: torch.nn.Module) -> Any:
    """The model's ``prompt_penalty`` method, looked up through wrappers; ValueError for a model that is not adapted."""
    inner = model
    for attribute in ("module", "_orig_mod"):
        inner = getattr(inner, attribute, inner)
    # A UnifiedEmbedder answers 0 for a trunk without adapters; here that would hide a forgotten adapt().
    adapted = inner.trunk if isinstance(inner, UnifiedEmbedder) else inner
    if not hasattr(adapted, "prompt_penalty"):
        raise ValueError(
            f"{type(adapted).__name__} is not adapted, it has no prompt_penalty(): call puma_plugin.adapt first; "
            "to train a model without adapters leave the penalty out (prompt_penalty_weight=0 in UnifiedTrainer)"
        )
    return inner.prompt_penalty
