"""The frozen branches of a block, computed by operators of our own where modules are just what these compute."""

from collections.abc import Callable
from typing import Any, TypeGuard

from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from puma_plugin.ops import frozen_mlp, packed_attention
from puma_plugin.ops.eager import cpu_kernel_dtype

# As these classes came, in case somebody patches them.
_FORWARDS: dict[type, Callable[..., Any]] = {
    known: known.forward
    for known in (Attention, Mlp, nn.Linear, nn.GELU, nn.Identity, nn.Dropout, nn.LayerNorm, LayerNorm)
}


def is_plain_layer_norm(norm: Any) -> TypeGuard[nn.LayerNorm]:
    """Whether a module is the layer norm of its weights, as torch and timm have it, and nothing besides."""
    return _is_plain(norm, nn.LayerNorm) or (_is_plain(norm, LayerNorm) and not norm._fast_norm)


def run_attention(attention: Any, tokens: Tensor, *inputs: Any, **options: Any) -> Tensor:
    """``attention(tokens, *inputs, **options)``.

    Between its linear layers by :func:`~puma_plugin.ops.packed_attention`, if such tokens have kernels and it is timm's
    plain attention without mask and hooks.
    """
    if cpu_kernel_dtype(tokens) is not None and _is_plain(attention, Attention):
        between = (attention.q_norm, attention.k_norm, attention.norm)
        if (
            attention.fused_attn
            and attention.gate is None
            and not (attention.training and attention.attn_drop.p)
            and all(option is None or option is False for option in (*inputs, *options.values()))
            and all(_is_plain(norm, nn.Identity) for norm in between)
        ):
            qkv = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, attention.head_dim))
            out: Tensor = attention.proj_drop(attention.proj(packed_attention(qkv)))
            return out
    result: Tensor = attention(tokens, *inputs, **options)
    return result


def run_mlp(mlp: Any, tokens: Tensor) -> Tensor:
    """``mlp(tokens)``; by :func:`~puma_plugin.ops.frozen_mlp`, if it is timm's plain MLP, frozen and without hooks."""
    if cpu_kernel_dtype(tokens) is not None and _is_plain(mlp, Mlp):
        fc1, fc2 = mlp.fc1, mlp.fc2
        if (
            _is_frozen_linear(fc1)
            and _is_plain(mlp.act, nn.GELU)
            and mlp.act.approximate == "none"
            and _does_nothing(mlp.drop1)
            and _does_nothing(mlp.norm)
            and _is_frozen_linear(fc2)
            and _does_nothing(mlp.drop2)
        ):
            return frozen_mlp(tokens, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    result: Tensor = mlp(tokens)
    return result


def _is_plain(module: Any, known: type[nn.Module]) -> bool:
    """Whether a call does what the class was written for and no more: no hooks, no other forward, not compiled."""
    return (
        type(module) is known
        and known.forward is _FORWARDS[known]
        and "forward" not in module.__dict__
        and module._compiled_call_impl is None
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or _has_any_global_hook()
        )
    )


def _is_frozen_linear(module: Any) -> bool:
    return (
        _is_plain(module, nn.Linear)
        and not module.weight.requires_grad
        and (module.bias is None or not module.bias.requires_grad)
    )


def _does_nothing(module: Any) -> bool:
    return _is_plain(module, nn.Identity) or (_is_plain(module, nn.Dropout) and not (module.training and module.p))
