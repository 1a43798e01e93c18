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
from puma_plugin.models.adapted_vit import NOT_TO_REPLACE
from puma_plugin.ops import plain_pytorch

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
    for module, methods in ((vit, NOT_TO_REPLACE), *((block, ("train", "eval")) for block in vit.blocks)):
        if replaced := sorted(vars(module).keys() & set(methods)):
            raise ValueError(
                f"this {type(module).__name__} has a {replaced[0]} of its own (set on the instance), which would pass "
                f"over adapters or prompts: `del` it from the instance; adapt() freezes the model itself"
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
def check_output(vit: Any) -> Tensor | None:
    """Tokens (1, N, C) for :func:`check_images`; None for a model on the meta device, which computes nothing.

    In the model's own precision and by torch's operators: what those of our own round otherwise is no other function,
    yet many blocks with large weights make much of it.
    """
    images = check_images(vit)
    if images.is_meta:
        return None
    with plain_pytorch(), torch.autocast(images.device.type, enabled=False):
        return vit.forward_features(images)


def difference(before: Tensor, after: Tensor) -> float | None:
    """How far two outputs are apart, relative to the largest value (at least 1); None if equal up to rounding."""
    if before.shape != after.shape:
        return float("inf")
    error = ((after - before).abs().max() / before.abs().max().clamp_min(1)).item()
    tolerance = max(10 * torch.finfo(before.dtype).eps, 1e-5)
    return None if error <= tolerance else error
