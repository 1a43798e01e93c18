"""Freezing a module so that it can be restored exactly."""

from typing import Any, NamedTuple

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# One attribute per frozen module rather than one table in the model: it survives renaming and replacing of modules
# (peft, quantisation, set_input_size), deepcopy and pickle, and keeps no replaced module alive.
_MARK = "_before_freezing"
_NORMS = "_frozen_batch_norms"


class BeforeFreezing(NamedTuple):
    """What a module was like before it was frozen."""

    training: bool
    requires_grad: dict[str, bool]
    attributes: dict[str, Any]


def freeze(root: nn.Module) -> None:
    """Take every module under ``root``: parameters without gradient, evaluation mode."""
    for module in root.modules():
        flags = {name: p.requires_grad for name, p in module.named_parameters(recurse=False)}
        module.__dict__[_MARK] = BeforeFreezing(module.training, flags, {})
        module.training = False
    root.__dict__[_NORMS] = tuple(name for name, module in root.named_modules() if isinstance(module, _BatchNorm))
    # After all flags are known: modules may share a parameter.
    for parameter in root.parameters():
        parameter.requires_grad_(False)


def set_frozen_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of a frozen module; :func:`thaw` sets it back."""
    module.__dict__[_MARK].attributes.setdefault(name, getattr(module, name))
    setattr(module, name, value)


def thaw(root: nn.Module) -> None:
    """Undo :func:`freeze` and :func:`set_frozen_attribute` for every module under ``root``."""
    root.__dict__.pop(_NORMS, None)
    for module in root.modules():
        before = module.__dict__.pop(_MARK, None)
        if before is None:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(before.requires_grad.get(name, parameter.requires_grad))
        for name, value in before.attributes.items():
            setattr(module, name, value)
        module.training = before.training


def keep_in_eval(root: nn.Module) -> None:
    """Put the frozen modules below ``root`` back into evaluation mode after ``root.train()``.

    Patch dropout has no weights and is there only if somebody asked for it, so it does follow ``train()``.
    """
    for module in root.modules():
        if module is not root and _MARK in module.__dict__ and not isinstance(module, _FOLLOWS_TRAINING):
            module.training = False
    # Those that convert_sync_batchnorm put in the place of frozen ones have no mark.
    for name in root.__dict__.get(_NORMS, ()):
        norm = _at(root, name)
        if isinstance(norm, _BatchNorm):
            norm.training = False


def _at(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:
        return None


_FOLLOWS_TRAINING = (PatchDropout, PatchDropoutWithIndices)
