"""Whether the models, losses and optimizers that a trainer is given can learn together."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from puma_plugin.losses import GatheredLoss
from puma_plugin.models.adapted_vit import find_adapted
from puma_plugin.models.adapter import StochasticAdapter
from puma_plugin.models.checkpoint import sharded_parameter
from puma_plugin.regularizers.prompt_penalty import PromptPenalty

Parts = Mapping[str, nn.Module]


def check_parts(
    models: Parts, loss_funcs: Parts, optimizers: Mapping[str, torch.optim.Optimizer], frozen: Collection[str]
) -> None:
    """Look for what would never learn, or wrongly.

    Args:
        models, loss_funcs, optimizers: by name.
        frozen: names of parts that are not to learn.

    Raises:
        ValueError: pml's wrapper of distributed losses; parameters that are sharded, or take a gradient and are in no
            optimizer, or in several.
    """
    if isinstance(dict(loss_funcs.items()).get("metric_loss"), DistributedLossWrapper):
        raise ValueError(
            "pml's DistributedLossWrapper multiplies the gradient of the proxies by the number of processes: "
            "use puma_plugin.losses.GatheredLoss(loss) instead, whose gradients equal those of one process"
        )
    held = {key: [p for group in o.param_groups for p in group["params"]] for key, o in optimizers.items()}
    trained = [p for parameters in held.values() for p in parameters]
    known = {id(p) for p in trained}
    if len(known) < len(trained):
        raise ValueError(
            f"{len(trained) - len(known)} parameters are in several optimizers, each of which would move them: leave "
            "them in one, such as the loss's proxies in metric_loss_optimizer"
        )
    for key, parameters in held.items():
        of = key.removesuffix("_optimizer")
        if of not in frozen and parameters and not any(p.requires_grad for p in parameters):
            warnings.warn(
                f"optimizers[{key!r}] moves nothing as long as none of its parameters takes a gradient; a trainer that "
                "froze them leaves them so, and requires_grad_() of each of them ends that",
                stacklevel=2,
            )
    for kind, parts in (("models", models), ("loss_funcs", loss_funcs)):
        for key, part in parts.items():
            if name := sharded_parameter(part):
                raise ValueError(
                    f"{kind}[{key!r}] is sharded (its {name}, as by fully_shard), which UnifiedTrainer "
                    "can neither clip nor save: use torch.nn.parallel.DistributedDataParallel for models and "
                    "puma_plugin.losses.GatheredLoss for losses, or a training loop of your own"
                )
            forgotten = [n for n, p in part.named_parameters() if p.requires_grad and id(p) not in known]
            if forgotten and key not in frozen:
                raise ValueError(
                    f"{kind}[{key!r}] has trainable parameters that no optimizer has, and would never learn: "
                    f"{forgotten[:3]}; pass optimizers={{'{key}_optimizer': ...}}, or set requires_grad=False"
                )


def check_penalty(loss_funcs: Parts, trunk: nn.Module) -> None:
    """Look for a prompt penalty that would come twice: the trunk's in a loss, and from the trainer.

    Raises:
        ValueError: naming the loss.
    """
    for key, loss in loss_funcs.items():
        penalties = [part for part in loss.modules() if isinstance(part, PromptPenalty)]
        if any(penalty.model is find_adapted(trunk) for penalty in penalties):
            raise ValueError(
                f"loss_funcs[{key!r}] has a PromptPenalty, and UnifiedTrainer adds the penalty by itself: leave it out "
                "of the loss, or set prompt_penalty_weight=0"
            )


def warn_of_unreached(models: Parts, frozen: Collection[str]) -> None:
    """After a backward pass, say which models are to learn and got no gradient: adapters, of those that have some.

    Hooks may have used a gradient and taken it away.
    """
    for key, model in models.items():
        adapters = [part for part in model.modules() if isinstance(part, StochasticAdapter)]
        learning = nn.ModuleList(adapters) if adapters else model
        weights = [p for p in learning.parameters() if p.requires_grad and not p._post_accumulate_grad_hooks]
        if key not in frozen and weights and all(p.grad is None for p in weights):
            what = f"{'the adapters of ' if adapters else ''}models[{key!r}]"
            warnings.warn(
                f"no gradient has reached {what} in the first step: if that is not meant, look whether something runs "
                "it under torch.no_grad() or detaches its output",
                stacklevel=2,
            )


def check_proxies(loss: nn.Module | None, dataset: Any, level: Any = 0) -> None:
    """Look for classes without a proxy.

    Args:
        level: pml's ``label_hierarchy_level``: the column of the labels that the loss learns; several are left to it.

    Raises:
        ValueError: the loss has fewer proxies than the dataset has labels of this level.
    """
    inner = loss.loss if isinstance(loss, GatheredLoss) else loss
    labels, proxies = _count_labels(dataset, level), getattr(inner, "num_classes", None)
    # Some losses of pml (NormalizedSoftmaxLoss, ProxyNCALoss) do not keep the number, for which pml then records 0.
    if isinstance(labels, int) and isinstance(proxies, int) and 0 < proxies < labels:
        what = f"{labels} classes" if level == 0 else f"{labels} labels of label_hierarchy_level={level}"
        raise ValueError(f"the loss has {proxies} proxies, but the dataset has {what}: set num_classes={labels}")


def _count_labels(dataset: Any, level: Any) -> int | None:
    """How many different ones there are, where the dataset tells."""
    if level == 0:
        return getattr(dataset, "num_classes", None)
    columns: Any = getattr(dataset, "labels", None)
    if not isinstance(level, int) or getattr(columns, "ndim", 0) != 2 or level >= columns.shape[1]:
        return None
    return len(set(columns[:, level].tolist()))


def check_shared(models: Parts, loss_funcs: Parts, frozen: Collection[str], world_size: int) -> None:
    """Among several processes, look for what each would train by its own gradients, and so into something else.

    Raises:
        ValueError: naming the part and the wrapper that it lacks.
    """
    for key, part in models.items():
        if key not in frozen and (alone := _outside(part, (DistributedDataParallel,))):
            raise ValueError(
                f"models[{key!r}] is trained by {world_size} processes, each of which would train its own {alone}: "
                "wrap it in torch.nn.parallel.DistributedDataParallel, not in FSDP (or average gradients in hooks of "
                "the parameters)"
            )
    for key, part in loss_funcs.items():
        if key not in frozen and (alone := _outside(part, (DistributedDataParallel, GatheredLoss))):
            raise ValueError(
                f"loss_funcs[{key!r}] has proxies or other weights, and each of {world_size} processes would train its "
                f"own {alone}: use puma_plugin.losses.GatheredLoss(loss), which also sees the batch of all"
            )


def _outside(part: nn.Module, wrappers: tuple[type, ...]) -> str:
    """Name of the first parameter that takes a gradient and is in no such wrapper, or an empty string.

    One with a hook on its gradient is left to whoever put it there.
    """
    inside = {id(p) for module in part.modules() if isinstance(module, wrappers) for p in module.parameters()}
    return next(
        (
            name
            for name, p in part.named_parameters()
            if p.requires_grad and id(p) not in inside and not (p._post_accumulate_grad_hooks or p._backward_hooks)
        ),
        "",
    )
