"""What an adapted model gives for one fixed image.

Backbones with the same weights may compute something else with them: with another number of heads, activation or
pooling. Which settings there are is timm's affair and changes with its versions, so the output itself is compared.
"""

import math
from typing import Any

import torch
from torch import Tensor

from puma_plugin.models.support import check_images
from puma_plugin.utils.evaluation_mode import evaluation_mode

# Norm of the difference over the norm: rounding, also by TF32 (0.1 %); and that of bfloat16 in many blocks.
_TOLERANCE, _TOLERANCE_OF_HALVES = 5e-3, 0.1
_HALVES = ("torch.bfloat16", "torch.float16")


@torch.no_grad()
def example_output(vit: Any) -> dict[str, Any] | None:
    """Pooled output in evaluation mode as plain values for JSON; None on the meta device, or if it is not finite."""
    images = check_images(vit)
    if images.is_meta:
        return None
    # Whole numbers, so that it is the same image everywhere.
    steps = torch.arange(images.numel(), device="cpu")
    images = (steps * steps % 251 / 125 - 1).reshape(images.shape).to(images)
    with evaluation_mode(vit), torch.autocast(images.device.type, enabled=False):
        output: Tensor = vit.forward_head(vit.forward_features(images), pre_logits=True)
    shape = list(output.shape)
    values = output.float().flatten(1, -2).mean(dim=1) if output.ndim > 2 else output.float()
    if not values.isfinite().all():
        return None
    rounded = [float(f"{value:.6g}") for value in values.flatten().tolist()]
    return {"dtype": str(images.dtype), "image": list(images.shape), "shape": shape, "values": rounded}


def compare_outputs(expected: dict[str, Any] | None, found: dict[str, Any] | None) -> str:
    """What distinguishes two results of :func:`example_output`; empty if nothing but rounding does.

    Also empty if they cannot be compared: one is None, or they are of images of different sizes, which models without
    absolute position embeddings take.
    """
    if expected is None or found is None or expected["image"] != found["image"]:
        return ""
    if expected["shape"] != found["shape"]:
        return f"its output has the shape {found['shape']} instead of {expected['shape']}"
    wanted, present = torch.tensor(expected["values"]), torch.tensor(found["values"])
    error = ((present - wanted).norm() / wanted.norm().clamp_min(1e-6)).item()
    halves = any(example["dtype"] in _HALVES for example in (expected, found))
    return "" if error <= (_TOLERANCE_OF_HALVES if halves else _TOLERANCE) else f"its output is off by {error:.1%}"


def require_example(example: Any) -> None:
    """Refuse what does not have the form of a result of :func:`example_output`.

    Raises:
        ValueError: it has another form.
    """
    if example is None:
        return
    keys = {"dtype": str, "image": list, "shape": list, "values": list}
    if not isinstance(example, dict) or not all(isinstance(example.get(key), kind) for key, kind in keys.items()):
        raise ValueError(f"the example output must hold {', '.join(keys)}")
    numbers = [*example["image"], *example["shape"], *example["values"]]
    # Of one image; of several outputs their mean is kept.
    fits = example["shape"] and len(example["values"]) == example["shape"][-1]
    if not fits or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError("the example output must hold finite numbers, as many values as its shape says")
