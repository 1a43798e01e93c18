"""Recognising a backbone by its frozen weights."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from puma_plugin.models.adapted_module import original_class

# Adapters fit a backbone whatever classifier sits on it, so that one does not count.
_OWN = ("adapter1", "adapter2", "prompt_pool")
_CLASSIFIERS = ("head", "head_dist")


def describe_backbone(vit: nn.Module) -> dict[str, Any]:
    """Class, timm's name if known, types, and a digest per frozen tensor with one over all, as plain values for JSON.

    Names, shapes and contents count, the classifier does not. Contents are compared after rounding to bfloat16, so that
    a model and its float64 or bfloat16 copy are the same backbone, on any device; a float16 copy is not.

    Raises:
        ValueError: a weight cannot be compared: it is packed, as quantisation leaves it, or on the meta device.
    """
    tensors = {}
    for name, tensor in vit.state_dict().items():
        parts = name.split(".")
        if parts[0] not in _CLASSIFIERS and not set(parts) & set(_OWN):
            _require_values(name, tensor)
            tensors[name] = [list(tensor.shape), _digest(tensor)]
    total = hashlib.blake2b(repr(sorted(tensors.items())).encode(), digest_size=16).hexdigest()
    config = getattr(vit, "pretrained_cfg", None) or {}
    name = ".".join(config[key] for key in ("architecture", "tag") if config.get(key))
    types = sorted({str(parameter.dtype) for parameter in vit.parameters()})
    return {
        "class": original_class(vit).__name__,
        "name": name,
        "types": types,
        "fingerprint": total,
        "tensors": tensors,
    }


def _require_values(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"the backbone cannot be recognised, because its {name} is no tensor but a {type(tensor).__name__}, as "
            "quantisation leaves it: save or load adapters before quantising"
        )
    if tensor.is_meta:
        raise ValueError(
            f"the backbone cannot be recognised, because its {name} is on the meta device and has no values: load the "
            "backbone's weights first"
        )


def rounded_bytes(tensor: Tensor) -> bytes:
    """A tensor's values after rounding to bfloat16, so that a copy in another precision is the same backbone."""
    if tensor.is_floating_point():
        tensor = tensor.to(torch.bfloat16)
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(rounded_bytes(tensor), digest_size=8).hexdigest()


def check_description(description: Any) -> None:
    """Refuse what does not have the form of a result of :func:`describe_backbone`.

    Raises:
        ValueError: it has another form.
    """
    texts = ("class", "name", "fingerprint")
    if not isinstance(description, dict) or not all(isinstance(description.get(key), str) for key in texts):
        raise ValueError(f"the backbone's description must hold the texts {', '.join(texts)}")
    tensors = description.get("tensors")
    if not isinstance(tensors, dict) or not all(isinstance(t, list) and len(t) == 2 for t in tensors.values()):
        raise ValueError("the backbone's description must hold tensors: name to [shape, digest]")


def compare_backbones(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """What distinguishes two results of :func:`describe_backbone`; empty if nothing that matters does."""
    if expected["fingerprint"] == found["fingerprint"]:
        return ""
    titles = _title(expected), _title(found)
    lines = [f"both are {titles[0]}" if titles[0] == titles[1] else f"expected {titles[0]}, found {titles[1]}"]
    wanted, present = expected["tensors"], found["tensors"]
    lines += _list_some("missing", [name for name in wanted if name not in present])
    lines += _list_some("not expected", [name for name in present if name not in wanted])
    both = [name for name in wanted if name in present]
    shapes = [name for name in both if wanted[name][0] != present[name][0]]
    lines += _list_some("other shape", [f"{name} {present[name][0]} instead of {wanted[name][0]}" for name in shapes])
    values = [name for name in both if name not in shapes and wanted[name] != present[name]]
    lines += _list_some(f"other values in {len(values)} of {len(both)} tensors", values)
    return "; ".join(lines)


def _title(backbone: dict[str, Any]) -> str:
    return f"{backbone['class']} {backbone['name']}".strip()


def _list_some(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what}: {', '.join(names[:3])}{more}"]
