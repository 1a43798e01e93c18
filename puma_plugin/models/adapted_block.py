"""A frozen transformer block with one stochastic adapter beside its attention and one beside its MLP."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from puma_plugin.models.adapted_module import AdaptedModule
from puma_plugin.models.adapter import StochasticAdapter
from puma_plugin.models.frozen_branches import is_plain_layer_norm, run_attention, run_mlp
from puma_plugin.ops.eager import is_autocast

_Recompute = tuple[Any, ...] | None


def _normalise(
    shape: tuple[int, ...], eps: float, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return functional.layer_norm(x, shape, weight, bias, eps)


def _version(tokens: Tensor) -> int:
    """Grows when the tokens are changed in place."""
    return -1 if torch.compiler.is_compiling() or tokens.is_inference() else tokens._version


def _recompute(norm: nn.Module, x: Tensor, tokens: Tensor, version: int) -> _Recompute:
    """How an adapter gets its tokens back in the backward; None if it keeps them.

    A layer norm keeps its input and weights for its own backward, so the adapter has nothing to keep; unless
    ``norm(x)`` may be more than the layer norm of these, or was changed in place since it had this version. The weights
    are those of now, whatever the module holds by then (``torch.func.functional_call``). On a GPU computing tokens once
    more costs nearly as much as the adapter (on an H200, for 180 images through ViT-S, 76 us next to the adapter's 91):
    there activation checkpointing is the better bargain.
    """
    if x.is_cuda or torch.compiler.is_compiling() or not is_plain_layer_norm(norm) or _version(tokens) != version:
        return None
    return partial(_normalise, norm.normalized_shape, norm.eps), x, norm.weight, norm.bias


def _cast_once(tokens: Tensor) -> Tensor:
    """Under autocast, tokens in its dtype: else the frozen branch and the adapter would each cast them, and back."""
    device_type = tokens.device.type
    if tokens.dtype is torch.float32 and is_autocast(device_type):
        return tokens.to(torch.get_autocast_dtype(device_type))
    return tokens


def _add(adapter: StochasticAdapter, x: Tensor, branch: Tensor, tokens: Tensor, recompute: _Recompute) -> Tensor:
    """``x + branch + adapter(tokens)`` in one pass over memory, in the dtype that ``x + branch`` has."""
    if torch.promote_types(x.dtype, branch.dtype) is x.dtype:
        return adapter(x, tokens, recompute, branch)
    return adapter(x + branch, tokens, recompute)


class AdaptedBlock(AdaptedModule):
    """Pre-norm block ``u = x + f1(attn(h1)) + adapter1(h1)``, ``x = u + f2(mlp(h2)) + adapter2(h2)``.

    From arXiv 2309.08944. h1 and h2, the normalised tokens, are computed once and shared by the frozen branch and the
    adapter. f is the block's own layer scale and drop path; the adapter's output does not pass through them.
    """

    adapter1: StochasticAdapter
    adapter2: StochasticAdapter
    norm1: nn.Module
    norm2: nn.Module
    attn: nn.Module
    mlp: nn.Module
    drop_path1: nn.Module
    drop_path2: nn.Module

    def scale_attention(self, branch: Tensor) -> Tensor:
        """The block's layer scale on the attention branch."""
        raise NotImplementedError

    def scale_mlp(self, branch: Tensor) -> Tensor:
        """The block's layer scale on the MLP branch."""
        raise NotImplementedError

    def forward(self, x: Tensor, *attention_inputs: Any, **attention_options: Any) -> Tensor:
        """Tokens (B, N, C) to (B, N, C); all else (mask, rotary embedding, position bias) goes to the attention."""
        tokens = _cast_once(self.norm1(x))
        version = _version(tokens)
        attended = run_attention(self.attn, tokens, *attention_inputs, **attention_options)
        branch = self.drop_path1(self.scale_attention(attended))
        x = _add(self.adapter1, x, branch, tokens, _recompute(self.norm1, x, tokens, version))
        tokens = _cast_once(self.norm2(x))
        version = _version(tokens)
        branch = self.drop_path2(self.scale_mlp(run_mlp(self.mlp, tokens)))
        return _add(self.adapter2, x, branch, tokens, _recompute(self.norm2, x, tokens, version))


class LayerScaleBlock(AdaptedBlock):
    """Blocks that keep their layer scale in modules ``ls1``, ``ls2`` (ViT, relative position ViT)."""

    ls1: nn.Module
    ls2: nn.Module

    def scale_attention(self, branch: Tensor) -> Tensor:
        return self.ls1(branch)

    def scale_mlp(self, branch: Tensor) -> Tensor:
        return self.ls2(branch)


class GammaBlock(AdaptedBlock):
    """Blocks that keep their layer scale in parameters ``gamma_1``, ``gamma_2``, None if they have none (EVA, BEiT)."""

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def scale_attention(self, branch: Tensor) -> Tensor:
        return branch if self.gamma_1 is None else self.gamma_1 * branch

    def scale_mlp(self, branch: Tensor) -> Tensor:
        return branch if self.gamma_2 is None else self.gamma_2 * branch
