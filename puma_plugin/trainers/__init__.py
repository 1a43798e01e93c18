"""Trainers, as in pytorch_metric_learning.trainers."""

from puma_plugin.trainers.batch_share import BatchShare
from puma_plugin.trainers.non_finite_loss_error import NonFiniteLossError
from puma_plugin.trainers.unified_trainer import UnifiedTrainer

__all__ = ["BatchShare", "NonFiniteLossError", "UnifiedTrainer"]
