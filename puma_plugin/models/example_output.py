"""What an adapted model gives for one fixed image.

Backbones with the same weights may compute something else with them: with another number of heads, activation or
pooling. Which settings there are is timm's affair and changes with its versions, so the output itself is compared.
"""

from typing import Any

import torch
from torch import Tensor

from puma_plugin.models.support import check_images
from puma_plugin.utils.evaluation_mode import evaluation_mode

# Relative to the largest value: rounding, also by TF32; and that of bfloat16 in many blocks. ViT-S with random weights
# is off by 2.5 % with a quick GELU in the place of GELU, by 1.3 % in bfloat16.
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
    return {
        "dtype": str(images.dtype),
        "shape": shape,
        "values": [float(f"{v:.6g}") for v in values.flatten().tolist()],
    }


def compare_outputs(expected: dict[str, Any] | None, found: dict[str, Any] | None) -> str:
    """What distinguishes two results of :func:`example_output`; empty if nothing but rounding does, or one is None."""
    if expected is None or found is None:
        return ""
    if expected["shape"] != found["shape"]:
        return f"its output has the shape {found['shape']} instead of {expected['shape']}"
    wanted, present = torch.tensor(expected["values"]), torch.tensor(found["values"])
    error = ((present - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()
    halves = any(example["dtype"] in _HALVES for example in (expected, found))
    return "" if error <= (_TOLERANCE_OF_HALVES if halves else _TOLERANCE) else f"its output is off by {error:.1%}"


def require_example(example: Any) -> None:
    """Refuse what does not have the form of a result of :func:`example_output`.

    Raises:
        ValueError: it has another form.
    """
    if example is None:
        return
    known = isinstance(example, dict) and isinstance(example.get("dtype"), str)
    lists = known and all(isinstance(example.get(key), list) for key in ("shape", "values"))
    if not lists or not all(isinstance(value, int | float) for key in ("shape", "values") for value in example[key]):
        raise ValueError("the example output must hold dtype, shape and values")
