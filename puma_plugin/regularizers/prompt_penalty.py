"""The prompt pool's own penalty in the place where pml trainers take regularizers."""

from typing import Any

import torch
from pytorch_metric_learning.regularizers import BaseRegularizer
from torch import Tensor


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
        # In a tuple, so that torch does not register it as a submodule.
        self._model = (model,)
        find_prompt_penalty(model)

    def compute_loss(self, x: Tensor) -> dict[str, dict[str, Any]]:
        penalty = find_prompt_penalty(self._model[0])()
        return {"loss": {"losses": penalty, "indices": None, "reduction_type": "already_reduced"}}


def find_prompt_penalty(model: torch.nn.Module) -> Any:
    """The model's ``prompt_penalty`` method, looked up through wrappers; ValueError for a model that is not adapted."""
    inner = model
    for attribute in ("module", "_orig_mod"):
        inner = getattr(inner, attribute, inner)
    method = getattr(inner, "prompt_penalty", None)
    if method is None:
        raise ValueError(
            f"{type(inner).__name__} is not adapted, it has no prompt_penalty(): call puma_plugin.adapt(model) first"
        )
    return method
