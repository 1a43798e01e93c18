"""Samplers, as in pytorch_metric_learning.samplers."""

from puma_plugin.samplers.multi_distribution_sampler import MultiDistributionSampler

__all__ = ["MultiDistributionSampler"]
