"""Prompt matching, written in other ways. Query (B, C), keys and logits (M, C), prompts (M, L, C)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def authors(query: Tensor, keys: Tensor, attention: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """The form of the authors' code: builds the attended query of every sample and prompt, (B, M, C)."""
    attended = query.unsqueeze(1) * attention.softmax(dim=-1)
    weights = torch.einsum("bmc,mc->bm", F.normalize(attended, dim=-1), F.normalize(keys, dim=-1))
    return torch.einsum("bm,mlc->blc", weights, prompts), weights
