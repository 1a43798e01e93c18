"""From a model configuration to a trunk and an embedder, as pytorch-metric-learning names the two halves."""

import difflib
import sys
from pathlib import Path

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed
from timm.models import load_checkpoint
from torch import nn
from torch.nn import functional

from puma_plugin.experiments.contestants.lora import add_lora
from puma_plugin.experiments.contestants.vpt import add_visual_prompts
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig
from puma_plugin.models import EmbeddingHead, adapt
from puma_plugin.models.support import find_support
from puma_plugin.utils.paths import full_path

# Beside what timm calls a model's classifier: heads that a model has only with some settings.
_HEADS = ("head", "head_dist", "fc")
_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")
# What files of earlier versions of timm hold, and later versions compute.
_DERIVED = ("relative_position_index", "num_batches_tracked", "k_bias")


class Normalise(nn.Module):
    """The embedder of a method without a head: L2 normalisation only."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C) -> (B, C), unit length."""
        return functional.normalize(features, dim=-1)


def check_backbone(config: ModelConfig) -> None:
    """Look whether timm knows the model and the weight file is there.

    Raises:
        ValueError: naming the setting, and models with similar names.
    """
    if config.backbone == "embedded":
        return
    if not timm.is_model(config.backbone):
        similar = difflib.get_close_matches(config.backbone, timm.list_models() + timm.list_pretrained(), 5)
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        raise ValueError(f"model.backbone is {config.backbone!r}, which timm {timm.__version__} does not know{hint}")
    if config.weights not in ("pretrained", "none") and not _weight_file(config).is_file():
        raise ValueError(
            f"model.weights is {config.weights!r}, which is no file; give pretrained, none or a weight file"
        )


def _weight_file(config: ModelConfig) -> Path:
    return Path(full_path(config.weights))


def build_backbone(config: ModelConfig, image_size: int | None = None) -> nn.Module:
    """The timm model without its classifier.

    Args:
        image_size: side of its input in pixels; None for the model's own. Position embeddings are resampled.

    Raises:
        ValueError: for a model timm does not know, weights that cannot be had, a file that does not fit, or a size that
            the model cannot take.
    """
    if config.backbone == "embedded":
        if image_size not in (None, 32):
            raise ValueError(
                f"data.image_size is {image_size}, but the embedded backbone takes 32 pixels; leave it out"
            )
        return _embedded_backbone(config.weights)
    check_backbone(config)
    if config.weights == "pretrained":
        try:
            model = _create(config.backbone, True, image_size)
        except Exception as error:
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"the pretrained weights of {config.backbone} could not be had ({cause}); set model.weights to a local "
                "file, or to none for random weights"
            ) from error
    else:
        try:
            model = _create(config.backbone, False, image_size)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{config.backbone} cannot be built for data.image_size {image_size} ({error})") from error
        if config.weights != "none":
            _load_file(model, _weight_file(config))
    _check_size(model, config.backbone, image_size)
    return model


def _check_size(model: nn.Module, name: str, image_size: int | None) -> None:
    """Refuse a size that patches do not fill: depending on the model, timm cuts the rest off, or stops in training."""
    patches = getattr(model, "patch_embed", None)
    if image_size is None or not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad:
        return
    side = max(patches.patch_size)
    if rest := image_size % side:
        fitting = [size for size in (image_size - rest, image_size - rest + side) if size]
        raise ValueError(
            f"data.image_size is {image_size}, but {name} has patches of {side} pixels; give "
            f"{' or '.join(map(str, fitting))}"
        )


def _create(name: str, pretrained: bool, image_size: int | None) -> nn.Module:
    if image_size is not None:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=image_size)
        except TypeError as error:
            # Convolutional networks need not be told.
            if "unexpected keyword argument 'img_size'" not in str(error):
                raise
    return timm.create_model(name, pretrained=pretrained, num_classes=0)


def _embedded_backbone(weights: str) -> nn.Module:
    from puma_plugin.datasets.embedded.backbone import build_backbone as embedded_architecture
    from puma_plugin.datasets.embedded.backbone import load_backbone

    return embedded_architecture() if weights == "none" else load_backbone()


def _load_file(model: nn.Module, path: Path) -> None:
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        outcome = load_checkpoint(model, str(path), strict=False, filter_fn=filter_fn, weights_only=True)
    except Exception as error:
        # Of several lines the first says that there is something, and the second what.
        cause = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise ValueError(
            f"model.weights: {path} could not be loaded into the backbone ({type(error).__name__}: {cause[:300]}); "
            "give a .safetensors file, or a state dict as torch.save writes it (.pth), of this very model"
        ) from error
    # Anything missing would silently stay random, and what is left over would silently not be computed.
    missing = list(getattr(outcome, "missing_keys", []))
    left = [name for name in getattr(outcome, "unexpected_keys", []) if _is_computed(name, model)]
    if missing or left:
        names = missing or left
        what = "lacks weights of the backbone" if missing else "has weights that the backbone has not"
        raise ValueError(
            f"model.weights: {path} {what}: {len(names)}, {names[0]!r} first; give the file of this very model"
        )


def _is_computed(name: str, model: nn.Module) -> bool:
    """Whether the model would have to compute with this weight of a file, unlike that of a classifier or a decoder."""
    part, *_, leaf = name.split(".")
    told = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    classifiers = (told,) if isinstance(told, str) else tuple(told)
    if part in _HEADS or leaf in _DERIVED or any(name == each or name.startswith(f"{each}.") for each in classifiers):
        return False
    return part in _TOKENS or getattr(model, part, None) is not None


def input_properties(backbone: nn.Module, config: DataConfig) -> tuple[int, list[float], list[float]]:
    """Side in pixels, mean and standard deviation of the network's input: the configuration's, else the backbone's."""
    own = resolve_model_data_config(backbone)
    size = config.image_size if config.image_size is not None else int(own["input_size"][-1])
    mean = config.mean if config.mean is not None else list(own["mean"])
    std = config.std if config.std is not None else list(own["std"])
    return size, mean, std


def build_model(config: ModelConfig, seed: int, image_size: int | None = None) -> tuple[nn.Module, nn.Module]:
    """The (trunk, embedder) of a method, with exactly its trainable weights requiring a gradient.

    The head is drawn first, from PyTorch's default generator seeded with `seed`: all methods start with the same one.
    """
    torch.manual_seed(seed)
    trunk = build_backbone(config, image_size)
    width = int(getattr(trunk, "num_features"))  # noqa: B009 (timm gives it; nn.Module does not declare it)
    torch.manual_seed(seed)
    if not config.trains:
        trunk.requires_grad_(False)
        return trunk, Normalise()
    embedder = EmbeddingHead(width, config.embedding_size)
    _prepare_trunk(trunk, config)
    return trunk, embedder


def _prepare_trunk(trunk: nn.Module, config: ModelConfig) -> None:
    """Give the trunk what its method trains."""
    method = config.method
    if method in ("full", "separate"):
        trunk.requires_grad_(True)
    elif method == "linear":
        trunk.requires_grad_(False)
    elif method == "lora":
        add_lora(trunk, config.lora_rank, config.lora_alpha)
    elif config.has_visual_prompts:
        add_visual_prompts(trunk, config.prompt_length, deep=method == "vpt_deep")
    else:
        if config.has_pool and not find_support(trunk).prompts:
            raise ValueError(
                f"model.backbone {config.backbone} can carry adapters but no prompts; set model.pool_size to 0, or "
                "model.method to adapters"
            )
        # AdaptFormer (Chen et al., NeurIPS 2022) differs from these adapters in that it has one per block, beside the
        # MLP, fed with the tokens before the norm, with biases and dropout; its width is 64 and its scale 0.1. Both
        # start with W_up = 0.
        adapt(
            trunk,
            adapter_dim=config.adapter_dim,
            drop=config.effective_drop,
            scale=config.scale,
            trainable_scale=config.trainable_scale,
            pool_size=config.effective_pool_size,
            prompt_length=config.prompt_length,
            init=config.init,
            blocks=config.blocks,
        )


def trainable_count(*modules: nn.Module) -> int:
    """Number of weights that require a gradient."""
    return sum(weight.numel() for module in modules for weight in module.parameters() if weight.requires_grad)
