"""The operators of PUMA: compiled where a kernel was built, plain PyTorch elsewhere (see `loader`)."""

from puma_plugin.ops.match_prompts import match_prompts
from puma_plugin.ops.packed_attention import packed_attention
from puma_plugin.ops.stochastic_adapter import stochastic_adapter

__all__ = ["match_prompts", "packed_attention", "stochastic_adapter"]
