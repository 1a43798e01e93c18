"""PUMA for pytorch-metric-learning: one embedding model for many heterogeneous image datasets."""

__version__ = "0.1.0"
