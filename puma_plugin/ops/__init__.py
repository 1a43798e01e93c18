"""PUMA's operators, and those of the frozen branches: compiled where there is a kernel, else plain PyTorch."""

from puma_plugin.ops import flop_formulas, loader
from puma_plugin.ops.frozen_mlp import frozen_mlp
from puma_plugin.ops.loader import plain_pytorch
from puma_plugin.ops.match_prompts import match_prompts
from puma_plugin.ops.packed_attention import packed_attention
from puma_plugin.ops.stochastic_adapter import stochastic_adapter

__all__ = ["frozen_mlp", "match_prompts", "packed_attention", "plain_pytorch", "stochastic_adapter"]

if loader.CPU_LIBRARY.loaded:
    flop_formulas.register()
