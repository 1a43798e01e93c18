"""Metric losses, as in pytorch_metric_learning.losses."""

from puma_plugin.losses.curricular_face_loss import CurricularFaceLoss
from puma_plugin.losses.gathered_loss import GatheredLoss

__all__ = ["CurricularFaceLoss", "GatheredLoss"]
