"""Datasets: several image datasets as one."""

from puma_plugin.datasets.unified_dataset import UnifiedDataset

__all__ = ["UnifiedDataset"]
