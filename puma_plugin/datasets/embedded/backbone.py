"""The benchmark's small pretrained vision transformer, shipped with the package in half precision."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

WEIGHTS = Path(__file__).with_name("backbone.safetensors")
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
ARCHITECTURE: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "num_classes": 0,
}  # fmt: skip


def build_backbone() -> "VisionTransformer":
    """The architecture with random weights: 32x32 pixels, patches of 8, width 128, 6 blocks, class token pooling."""
    # Brings torchvision: slow to import, and the images do without.
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**ARCHITECTURE)
    # What timm.data.resolve_data_config reads.
    config: Any = {"input_size": (3, 32, 32), "mean": IMAGE_MEAN, "std": IMAGE_STD, "interpolation": "bicubic"}
    model.pretrained_cfg = model.default_cfg = config
    return model


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of the tensors, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load_backbone(path: str | os.PathLike[str] | None = None) -> "VisionTransformer":
    """A plain timm VisionTransformer with the shipped weights (or those in ``path``), float32, in evaluation mode.

    Features are (B, 128) from images normalised by ``to_input``. How the weights were made:
    ``benchmarks/pretrain_backbone.py``.

    Raises:
        FileNotFoundError: if the weights are not there.
        ValueError: if the file is damaged or holds another architecture.
    """
    file = WEIGHTS if path is None else Path(path)
    if not file.exists():
        raise FileNotFoundError(
            f"no backbone weights at {file}; reinstall the package or run benchmarks/pretrain_backbone.py"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:
        raise ValueError(f"{file} is no readable safetensors file ({error}); reinstall the package") from error
    if metadata.get("sha256") != fingerprint(tensors):
        raise ValueError(f"{file} does not match its checksum: the file is damaged; reinstall the package")
    model = build_backbone()
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"{file} holds weights of another architecture than {ARCHITECTURE}: {error}") from error
    return model.eval()


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """Images uint8 (N, 32, 32, 3) as normalised float32 (N, 3, 32, 32), what the backbone takes."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 (N, height, width, 3), got {images.dtype} {images.shape}")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous()
