"""Testers, as in pytorch_metric_learning.testers."""

from puma_plugin.testers.multi_distribution_tester import MultiDistributionTester

__all__ = ["MultiDistributionTester"]
