"""The frozen branches of a block, computed by operators of our own where a module is just what these compute."""

from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from puma_plugin.ops import frozen_mlp, packed_attention


def run_attention(attention: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
    """``attention(tokens, **options)``; between its linear layers by :func:`~puma_plugin.ops.packed_attention` if it is
    timm's plain attention without mask and hooks."""
    if type(attention) is Attention and not torch.compiler.is_compiling():
        between = (attention.q_norm, attention.k_norm, attention.norm)
        if (
            all(type(norm) is nn.Identity for norm in between)
            and attention.gate is None
            and attention.fused_attn
            and not (attention.training and attention.attn_drop.p)
            and all(option is None or option is False for option in options.values())
            and _are_untouched(attention, attention.attn_drop, *between)
        ):
            qkv = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1))
            return attention.proj_drop(attention.proj(packed_attention(qkv)))
    return attention(tokens, **options)


def run_mlp(mlp: nn.Module, tokens: Tensor) -> Tensor:
    """``mlp(tokens)``; by :func:`~puma_plugin.ops.frozen_mlp` if it is timm's plain MLP, frozen and without hooks."""
    if type(mlp) is Mlp and not torch.compiler.is_compiling():
        fc1, act, fc2 = mlp.fc1, mlp.act, mlp.fc2
        if (
            _is_exact_gelu(act)
            and _is_frozen_linear(fc1)
            and _is_frozen_linear(fc2)
            and type(mlp.norm) is nn.Identity
            and not (mlp.training and (mlp.drop1.p or mlp.drop2.p))
            and _are_untouched(mlp, fc1, act, mlp.drop1, mlp.norm, fc2, mlp.drop2)
        ):
            return frozen_mlp(tokens, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return mlp(tokens)


def _is_exact_gelu(act: nn.Module) -> bool:
    return type(act) is nn.GELU and act.approximate == "none"


def _is_frozen_linear(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and not module.weight.requires_grad
        and (module.bias is None or not module.bias.requires_grad)
    )


def _are_untouched(*modules: nn.Module) -> bool:
    """Whether a call of each does what its class says, no more: no hooks, no forward of the instance's own."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        for module in modules
    )
