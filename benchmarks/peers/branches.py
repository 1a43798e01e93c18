"""The frozen branches of a block, as torch computes them."""

from torch import Tensor
from torch.nn import functional as F


def mlp(input: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor) -> Tensor:
    """Two linear layers and GELU; the weights take no gradient."""
    return F.linear(F.gelu(F.linear(input, fc1, bias1)), fc2, bias2)


def attention(qkv: Tensor) -> Tensor:
    """As timm's attention between its linear layers: qkv (B, N, 3, H, D) to (B, N, H * D)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2).reshape(*qkv.shape[:2], -1)
