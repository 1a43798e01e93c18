"""Small helpers shared by all layers."""

from puma_plugin.utils.atomic import atomic_write

__all__ = ["atomic_write"]
