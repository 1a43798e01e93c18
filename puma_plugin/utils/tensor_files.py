"""Files of tensors (safetensors) that tell when they were damaged."""

import hashlib
import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puma_plugin.utils.atomic import atomic_write

# Key of the metadata. Files of earlier versions have none.
_DIGEST = "digest"
_WITH_INFINITY = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class DamagedFileError(ValueError):
    """The file itself is at fault, whatever it was to be read for."""


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata, whole or not at all.

    Raises:
        ValueError: a tensor holds NaN or infinity, or ``path`` is a folder.
    """
    if not os.fspath(path) or os.path.isdir(path):
        raise ValueError(f"path must be a file, got {os.fspath(path)!r}; give a name such as model.safetensors")
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if odd := _not_finite(values):
        raise ValueError(f"{odd} holds NaN or infinity, so nothing was written to {path}: training has diverged")
    with atomic_write(path) as temporary:
        save_file(values, temporary, {"format": "pt", **metadata, _DIGEST: _digest_of(values)})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata alone.

    Raises:
        DamagedFileError: no safetensors file, or a truncated one.
        OSError: it is not there, or must not be read.
    """
    open(path, "rb").close()  # safetensors says of every such file that it is not there
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path} is truncated or not a safetensors file: {error}") from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of what :func:`write_tensors` wrote, or of another safetensors file.

    Raises:
        DamagedFileError: as :func:`read_metadata`; or the tensors are not those that were written, or not finite.
    """
    metadata = read_metadata(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if _DIGEST in metadata and metadata[_DIGEST] != _digest_of(tensors):
        raise DamagedFileError(
            f"{path} is damaged: its tensors are not those that were written (their digest differs). Copy it anew; a "
            f'program that changes them on purpose leaves "{_DIGEST}" out of the metadata'
        )
    if odd := _not_finite(tensors):
        raise DamagedFileError(f"{path} cannot be used: {odd} holds NaN or infinity")
    return metadata, tensors


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor with a value that is not; empty if there is none."""
    return next((name for name, t in tensors.items() if t.dtype in _WITH_INFINITY and not t.isfinite().all()), "")
