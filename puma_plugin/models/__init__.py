"""The model parts of PUMA: adapters, prompts, and putting both into a timm vision transformer."""

from puma_plugin.models.adapted_vit import AdaptedViT
from puma_plugin.models.adapter import StochasticAdapter
from puma_plugin.models.checkpoint import load_adapter, load_embedder, read_adapter_metadata, save_adapter
from puma_plugin.models.embedding_head import EmbeddingHead
from puma_plugin.models.prompt_pool import PromptPool
from puma_plugin.models.unified_embedder import UnifiedEmbedder
from puma_plugin.models.vit import adapt, eject

__all__ = [
    "AdaptedViT",
    "EmbeddingHead",
    "PromptPool",
    "StochasticAdapter",
    "UnifiedEmbedder",
    "adapt",
    "eject",
    "load_adapter",
    "load_embedder",
    "read_adapter_metadata",
    "save_adapter",
]
