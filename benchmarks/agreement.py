"""Whether contestants compute the same: relative error of each result against a float64 reference."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Of the error's norm over the reference's norm. Half types round every intermediate tensor: forms that keep more of
# them are further off.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 4e-3}


class DisagreementError(AssertionError):
    """A contestant does not compute what the reference computes."""


def relative_errors(
    results: Sequence[Tensor | None], reference: Sequence[Tensor | None], names: Sequence[str]
) -> dict[str, float]:
    """``|result - reference| / |reference|`` (Frobenius norms, in float64), by name.

    Raises:
        DisagreementError: a result is missing, has another shape, or holds a value that is not finite.
    """
    errors = {}
    for result, expected, name in zip(results, reference, names, strict=True):
        if result is None or expected is None or result.shape != expected.shape:
            got = None if result is None else tuple(result.shape)
            wanted = None if expected is None else tuple(expected.shape)
            raise DisagreementError(f"{name}: got shape {got}, the reference has {wanted}")
        difference = (result.double() - expected.double()).norm().item()
        if not math.isfinite(difference):
            raise DisagreementError(f"{name}: holds values that are not finite")
        size = expected.double().norm().item()
        errors[name] = difference / size if size > 0 else difference
    return errors


def require_agreement(errors: Mapping[str, float], tolerance: float) -> None:
    """
    Raises:
        DisagreementError: an error is above the tolerance.
    """
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= tolerance}
    if wrong:
        raise DisagreementError(f"off from the float64 reference by more than {tolerance:.0e}: {wrong}")
