"""Visual prompt tuning (Jia et al., ECCV 2022) of timm's vision transformers: a contestant of PUMA's prompts."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from puma_plugin.models.adapted_module import AdaptedModule, change_class
from puma_plugin.models.arguments import require_int
from puma_plugin.models.freezing import freeze, set_frozen_attribute
from puma_plugin.models.support import SUPPORTED, find_support


class VisualPromptBlock(AdaptedModule):
    """A transformer block that puts prompt tokens before its work, or takes them away after it.

    Attributes:
        visual_prompts: (L, C), or None in a block that only takes them away.
        prompt_start: tokens before the prompts (class, distillation and register tokens).
        prompt_length: L.
        replaces: prompts of an earlier block are there and give way to this block's.
        removes: this is the last block.
    """

    visual_prompts: nn.Parameter | None
    prompt_start: int
    prompt_length: int
    replaces: bool
    removes: bool

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Tokens (B, N, C), with L more between the first prompted block and the last."""
        start, end = self.prompt_start, self.prompt_start + self.prompt_length
        if self.visual_prompts is not None:
            prompts = self.visual_prompts.to(x.dtype).expand(len(x), -1, -1)
            x = torch.cat([x[:, :start], prompts, x[:, end if self.replaces else start :]], dim=1)
        x = super().forward(x, *arguments, **options)
        return torch.cat([x[:, :start], x[:, end:]], dim=1) if self.removes else x


def add_visual_prompts(vit: nn.Module, prompt_length: int, deep: bool) -> nn.Module:
    """Freeze a timm vision transformer and give it trainable prompt tokens, in place.

    As published: L tokens of width C stand after the class token and before the patches, without position embedding;
    "shallow" gives them to the first block, "deep" gives each block its own in place of what the block before made of
    its. They start uniform in +-sqrt(6 / (3 p^2 + C)), p the side of a patch. They are gone after the last block, so
    that no pooling sees them. Register tokens count as class tokens; rotary embeddings leave the prompts alone.

    Args:
        vit: a timm model that :func:`puma_plugin.adapt` can give prompts to.
        prompt_length: L.
        deep: prompts in every block.

    Returns:
        The same object; the new parameters are ``blocks.<i>.visual_prompts``, drawn from torch's default generator.

    Raises:
        TypeError, ValueError: ``prompt_length`` is no positive integer, or the model takes no prompts.
    """
    require_int("prompt_length", prompt_length, 1)
    if not find_support(vit).prompts:
        raise ValueError(
            f"VPT needs a model with room for prompt tokens, which {type(vit).__name__} has not. {SUPPORTED}"
        )
    model = cast(Any, vit)
    like = next(vit.parameters())
    bound = math.sqrt(6 / (3 * math.prod(model.patch_embed.patch_size) + model.embed_dim))
    last = len(model.blocks) - 1
    training = vit.training
    freeze(vit)
    for index, block in enumerate(model.blocks):
        # A rotary embedding turns patches only, and counts the tokens before them.
        if hasattr(block.attn, "num_prefix_tokens"):
            set_frozen_attribute(block.attn, "num_prefix_tokens", block.attn.num_prefix_tokens + prompt_length)
        own = deep or index == 0
        if not own and index != last:
            continue
        change_class(block, VisualPromptBlock)
        block.prompt_start, block.prompt_length = model.num_prefix_tokens, prompt_length
        block.replaces, block.removes = index > 0, index == last
        start = torch.empty(prompt_length, model.embed_dim).uniform_(-bound, bound) if own else None
        block.visual_prompts = None if start is None else nn.Parameter(start.to(like.device, like.dtype))
    # Its train() keeps what is frozen in evaluation mode.
    change_class(vit, AdaptedModule)
    return vit.train(training)
