"""Which timm models can be adapted, and the check that an adapted one still computes the same."""

from typing import Any, NamedTuple

import torch
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn

from puma_plugin.models.adapted_block import AdaptedBlock, GammaBlock, LayerScaleBlock

# A list and not a look at the attributes: timm's ResPostBlock has every attribute of Block in another order, and SAM's
# windowed block is right at one image size only.
BLOCKS: dict[type[nn.Module], type[AdaptedBlock]] = {
    Block: LayerScaleBlock,
    RelPosBlock: LayerScaleBlock,
    EvaBlock: GammaBlock,
    BeitBlock: GammaBlock,
}
# These have a _pos_embed, where prompts can enter the sequence.
WITH_PROMPTS: tuple[type[nn.Module], ...] = (VisionTransformer, VisionTransformerDistilled, Eva)
ADAPTERS_ONLY: tuple[type[nn.Module], ...] = (Beit, NaFlexVit, VisionTransformerRelPos)

SUPPORTED = (
    "Supported are timm's pre-norm ViTs: with adapters and prompts VisionTransformer (plain, DeiT, DeiT-III, DINOv2, "
    "CLIP, SigLIP, FlexiViT, R+ViT hybrids), VisionTransformerDistilled and Eva (EVA, EVA-02, DINOv3, PE, RoPE ViTs); "
    "with adapters only (pool_size=0) Beit, NaFlexVit and VisionTransformerRelPos."
)


Call = tuple[tuple[Any, ...], dict[str, Any], Tensor]
"""What a block was called with, and gave."""


class Support(NamedTuple):
    """What :func:`find_support` found: the mixin of each block, and whether prompts can be used."""

    block_mixins: list[type[AdaptedBlock]]
    prompts: bool


def find_support(vit: Any) -> Support:
    """Look a model up in the list of what can be adapted.

    Raises:
        ValueError: the model or one of its blocks is not in the list, or a block stands in two places; the message says
            which and what is supported.
    """
    name = type(vit).__name__
    if type(vit) not in WITH_PROMPTS + ADAPTERS_ONLY:
        raise ValueError(f"adapt() does not support {type(vit).__module__}.{name}. {SUPPORTED}")
    unknown = {type(block).__name__ for block in vit.blocks if type(block) not in BLOCKS}
    if unknown:
        raise ValueError(f"adapt() does not support a {name} with blocks of {', '.join(sorted(unknown))}. {SUPPORTED}")
    first: dict[nn.Module, int] = {}
    for index, block in enumerate(vit.blocks):
        if first.setdefault(block, index) != index:
            raise ValueError(
                f"adapt() needs a block of its own in every place, but blocks[{index}] of this {name} is blocks["
                f"{first[block]}] again, so their adapters would be the same; put copies there, as in vit.blocks"
                f"[{index}] = copy.deepcopy(vit.blocks[{first[block]}]), which compute the same"
            )
    if any("forward" in vars(block) for block in vit.blocks):
        raise ValueError(
            f"a block of this {name} has a forward of its own (set on the instance, as some offloading tools "
            "do), which would bypass its adapters; call adapt() first"
        )
    return Support([BLOCKS[type(block)] for block in vit.blocks], type(vit) in WITH_PROMPTS)


def check_images(vit: Any) -> Tensor:
    """One random image (1, channels, H, W) of the model's own input size, the same at every call.

    NaFlexVit takes any size, so it gets a small one.
    """
    parameter = next(vit.parameters())
    channels, height, width = vit.pretrained_cfg["input_size"] if hasattr(vit, "pretrained_cfg") else (3, 224, 224)
    channels = getattr(vit, "in_chans", channels)
    if isinstance(vit, NaFlexVit):
        height, width = (4 * side for side in vit.embeds.patch_size)
    elif vit.patch_embed.img_size is not None:
        height, width = vit.patch_embed.img_size
    # A generator of its own: the check leaves the caller's random numbers alone.
    images = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0), device="cpu")
    return images.to(parameter.device, parameter.dtype)


@torch.no_grad()
def check_output(vit: Any, calls: list[Call] | None = None) -> Tensor | None:
    """Tokens (1, N, C) for :func:`check_images`; None for a model on the meta device, which computes nothing.

    Args:
        calls: takes what each block was called with, and gave.
    """
    images = check_images(vit)
    if images.is_meta:
        return None

    def record(block: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> None:
        calls.append((inputs, options, output))  # type: ignore[union-attr]

    hooks = [] if calls is None else [block.register_forward_hook(record, with_kwargs=True) for block in vit.blocks]
    try:
        with torch.autocast(images.device.type, enabled=False):
            return vit.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def blocks_agree(vit: Any, calls: list[Call]) -> bool:
    """Whether each block gives what it gave before, up to rounding.

    Of many blocks with large weights rounding alone may show in the last one's output; of one block on the same tokens
    it stays far below what another function would make.
    """
    with torch.autocast(calls[0][2].device.type, enabled=False):
        return len(calls) == len(vit.blocks) and all(
            difference(output, block(*inputs, **options), tolerance=1e-3) is None
            for block, (inputs, options, output) in zip(vit.blocks, calls, strict=True)
        )


def difference(before: Tensor, after: Tensor, tolerance: float = 1e-5) -> float | None:
    """How far two outputs are apart, relative to the largest value (at least 1); None if equal up to rounding."""
    if before.shape != after.shape:
        return float("inf")
    error = ((after - before).abs().max() / before.abs().max().clamp_min(1)).item()
    return None if error <= max(10 * torch.finfo(before.dtype).eps, tolerance) else error
