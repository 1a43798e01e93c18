"""Whether a training state is of the parts and of the data that a trainer has."""

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from puma_plugin.models.config import AdaptationConfig
from puma_plugin.trainers.training_state import model_state, unwrap


def require_fitting_model(model: nn.Module, state: Mapping[str, Any], name: str, is_frozen: bool = False) -> None:
    """Compare a model with what :func:`model_state` gave of another.

    Raises:
        ValueError: it was adapted in another way, the tensors' names or shapes differ, or the frozen parameters are
            others.
    """
    own = model_state(model, is_frozen)
    # Not in checkpoints of earlier versions.
    before, now = state.get("adaptation"), own["adaptation"]
    if before and now and (odd := AdaptationConfig.from_dict(now).differences(AdaptationConfig.from_dict(before))):
        raise ValueError(
            f"the checkpoint does not fit models[{name!r}]: {'; '.join(odd)}; adapt it as in the run that saved it"
        )
    _require_same_tensors(own["tensors"], state["tensors"], f"models[{name!r}]", own["tensors"].keys())
    if own["frozen"] != state["frozen"]:
        raise ValueError(
            f"the frozen weights of models[{name!r}] are not those of the run that saved the checkpoint: load the same "
            "pretrained weights"
        )


def require_fitting_state(part: Any, state: Mapping[str, Any], name: str) -> None:
    """Compare a loss, miner, optimizer or scheduler with the ``state_dict()`` of another.

    Raises:
        ValueError: a module's names or the shapes of its parameters differ, the sizes of an optimizer's groups, or how
            many schedulers follow each other.
    """
    if isinstance(part, nn.Module):
        # Of buffers and further state a loss may take other shapes than it has.
        weights = {key for key, weight in part.named_parameters() if not is_lazy(weight)}
        _require_same_tensors(part.state_dict(), state, name, weights)
    if isinstance(part, torch.optim.Optimizer):
        stored, own = (
            [len(group["params"]) for group in groups] for groups in (state["param_groups"], part.param_groups)
        )
        if stored != own:
            raise ValueError(
                f"the checkpoint does not fit {name}: groups of {stored} parameters instead of {own}; make the "
                "optimizer as in the run that saved it"
            )
    if isinstance(part, torch.optim.lr_scheduler.LRScheduler):
        # Those of SequentialLR: of fewer, torch would leave the others as they are.
        before, now = (len(holding.get("_schedulers", ())) for holding in (state, part.state_dict()))
        if before != now:
            raise ValueError(
                f"the checkpoint does not fit {name}: {before} schedulers within it instead of {now}; make it as in "
                "the run that saved it"
            )


def _require_same_tensors(wanted: Mapping[str, Any], stored: Mapping[str, Any], name: str, sized: Set[str]) -> None:
    """ValueError unless names agree, and the shapes of the tensors that are ``sized``."""
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    both = [key for key in wanted if key in stored and key in sized]
    shapes = [
        f"{key}: {tuple(stored[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in both
        if stored[key].shape != wanted[key].shape
    ]
    if missing or surplus or shapes:
        raise ValueError(
            f"the checkpoint does not fit {name}: missing {missing[:5]}, not expected {surplus[:5]}, other shape "
            f"{shapes[:5]}; build it as in the run that saved it"
        )


def data_names(dataset: Any) -> dict[str, list[str]]:
    """What proxies stand for, by their number, as far as the dataset tells: names only, as folders may be moved."""
    told = {what: getattr(dataset, f"{what}_names", None) for what in ("distribution", "class")}
    return {what: [str(name) for name in names] for what, names in told.items() if isinstance(names, list | tuple)}


def require_same_names(stored: Mapping[str, list[str]], own: Mapping[str, list[str]]) -> None:
    """Compare what :func:`data_names` gave of two datasets, where both tell; others may have been added behind.

    Raises:
        ValueError: naming the first distribution or class that differs.
    """
    for what in (what for what in own if what in stored):
        for number, (before, now) in enumerate(zip(stored[what], own[what], strict=False)):
            if before != now:
                raise ValueError(
                    f"{what} {number} was {before!r} in the run that saved the checkpoint and is {now!r} now, so that "
                    "what the loss keeps of each class would be taken for another one's: give the same datasets, by "
                    "the same names and in the same order"
                )


def names_of_parameters(
    optimizers: Mapping[str, torch.optim.Optimizer], owners: Mapping[str, Any]
) -> dict[str, list[list[str]]]:
    """What each optimizer has in its groups, in order, by which it knows them; of others than ``owners``, no names."""
    names: dict[int, str] = {}
    for owner, module in sorted(owners.items()):
        if isinstance(module, nn.Module):
            for name, weight in unwrap(module).named_parameters():
                names.setdefault(id(weight), f"{owner}.{name}")
    return {
        key: [[names.get(id(weight), "") for weight in group["params"]] for group in optimizer.param_groups]
        for key, optimizer in optimizers.items()
    }


def require_same_order(stored: Mapping[str, list[list[str]]], own: Mapping[str, list[list[str]]]) -> None:
    """Compare what :func:`names_of_parameters` gave for optimizers with groups of the same sizes.

    Raises:
        ValueError: naming the first parameter that differs, which would go on with another one's averages.
    """
    for key, groups in own.items():
        for number, (before, now) in enumerate(zip(stored[key], groups, strict=True)):
            for old, new in zip(before, now, strict=True):
                if old != new:
                    raise ValueError(
                        f"the checkpoint does not fit optimizers[{key!r}]: group {number} had {old!r} where it has "
                        f"{new!r}, which would go on with averages of the other; give the parameters in the order of "
                        "the run that saved it (a set has none)"
                    )
