"""Trunk and head as one module."""

from typing import Any

import torch
from torch import Tensor, nn

from puma_plugin.models.adapted_vit import find_adapted, optimizer_groups, refuse_several_adapted, without_wrappers
from puma_plugin.models.embedding_head import EmbeddingHead
from puma_plugin.utils.evaluation_mode import evaluation_mode


class UnifiedEmbedder(nn.Module):
    """``head(trunk(images))``: images (B, channels, H, W) to embeddings (B, D) of length 1.

    Args:
        trunk: a timm vision transformer without classifier (``num_classes=0``), adapted or, as a baseline, not. It may
            be inside a wrapper, such as that of ``torch.compile``.
        head: an :class:`EmbeddingHead` for the trunk's width.

    Raises:
        TypeError: one of the two is something else.
        ValueError: the widths differ, the trunk still has its classifier or does not pool, or it holds several adapted
            models.
    """

    def __init__(self, trunk: nn.Module, head: EmbeddingHead) -> None:
        super().__init__()
        if not isinstance(trunk, nn.Module):
            raise TypeError(f"trunk must be a module, got {type(trunk).__name__}")
        if not isinstance(head, EmbeddingHead):
            raise TypeError(f"head must be an EmbeddingHead, got {type(head).__name__}")
        classifiers = [part for name in ("head", "head_dist") if (part := getattr(trunk, name, None)) is not None]
        are_gone = bool(classifiers) and all(isinstance(part, nn.Identity) for part in classifiers)
        if getattr(trunk, "num_classes", 0) and not are_gone:
            way = (
                "create it with num_classes=0 or call trunk.reset_classifier(0)"
                if hasattr(trunk, "reset_classifier")
                else "put torch.nn.Identity() in its place, and set trunk.num_classes = 0"
            )
            raise ValueError(f"the trunk still has a classifier of {trunk.num_classes} classes; {way}")
        if getattr(trunk, "global_pool", "token") == "":
            raise ValueError("the trunk does not pool its tokens (global_pool=''); create it with another global_pool")
        width = getattr(trunk, "num_features", head.in_features)
        if width != head.in_features:
            raise ValueError(f"the head takes {head.in_features} features but the trunk gives {width}")
        refuse_several_adapted(trunk, "the trunk of a UnifiedEmbedder")
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Every parameter of trunk and head that takes a gradient."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def param_groups(
        self,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        head_factor: float = 10.0,
        adapter_factor: float = 10.0,
        prompt_factor: float = 10.0,
        other_factor: float = 1.0,
    ) -> list[dict[str, Any]]:
        """The trunk's groups (:meth:`AdaptedViT.param_groups`) and the head's, ``lr`` times 10 in the paper.

        What is trained in a trunk besides an adapted model is the group ``trunk``, with ``lr`` times ``other_factor``.
        """
        adapted = find_adapted(self.trunk)
        groups = []
        if adapted is not None:
            groups = adapted.param_groups(lr, weight_decay, adapter_factor, prompt_factor, other_factor)
        known = {id(parameter) for group in groups for parameter in group["params"]}
        rest = {
            "trunk": [parameter for parameter in self.trunk.parameters() if id(parameter) not in known],
            "head": list(self.head.parameters()),
        }
        return groups + optimizer_groups(rest, {"trunk": other_factor, "head": head_factor}, lr, weight_decay)

    def prompt_penalty(self, weight: float = 1e-6) -> Tensor:
        """The trunk's :meth:`AdaptedViT.prompt_penalty`; 0 for a trunk that is not adapted."""
        adapted = find_adapted(self.trunk)
        return self.head.linear.weight.new_zeros(()) if adapted is None else adapted.prompt_penalty(weight)

    def prompt_weights(self, images: Tensor) -> Tensor:
        """The trunk's :meth:`AdaptedViT.prompt_weights`, (B, M).

        Raises:
            ValueError: the trunk has no prompts, or does not hand on the images just once.
        """
        adapted = find_adapted(self.trunk)
        if adapted is None:
            raise ValueError("prompt_weights() needs prompts, but the trunk is not adapted")
        if without_wrappers(self.trunk) is adapted or adapted.prompt_pool is None:
            return adapted.prompt_weights(images)
        # What the trunk does to images before it hands them on is its own affair.
        seen: list[Tensor] = []
        hook = adapted.prompt_pool.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
        try:
            # Compiled code would not see the hook.
            with torch.no_grad(), evaluation_mode(self.trunk), torch.compiler.set_stance("force_eager"):
                self.trunk(images)
        finally:
            hook.remove()
        if len(seen) != 1 or len(seen[0]) != len(images):
            raise ValueError(
                f"the trunk, a {type(self.trunk).__name__}, calls the adapted model in it {len(seen)} times, so that "
                "its images have no prompt weights of their own: ask the adapted model itself, prompt_weights(images)"
            )
        return seen[0]
