"""Regularizers, as in pytorch_metric_learning.regularizers."""

from puma_plugin.regularizers.orthogonality_regularizer import OrthogonalityRegularizer
from puma_plugin.regularizers.prompt_penalty import PromptPenalty

__all__ = ["OrthogonalityRegularizer", "PromptPenalty"]
