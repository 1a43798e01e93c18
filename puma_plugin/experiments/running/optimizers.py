"""The optimizers of a run, their learning rates and schedules."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from puma_plugin.experiments.settings.config import OptimizerConfig
from puma_plugin.models.adapted_vit import AdaptedViT


def make_optimizers(
    trunk: nn.Module, embedder: nn.Module, loss: nn.Module, config: OptimizerConfig
) -> dict[str, torch.optim.Optimizer]:
    """AdamW for trunk, embedder and loss, under pml's names; none for a part without weights to train."""
    if isinstance(trunk, AdaptedViT):
        trunk_groups = trunk.param_groups(
            config.lr, config.weight_decay, adapter_factor=config.factor, prompt_factor=config.factor
        )
    else:
        weights = [weight for weight in trunk.parameters() if weight.requires_grad]
        # Weights added to a frozen trunk start from nothing, as adapters do; a trunk trained as a whole does not.
        whole = len(weights) == len(list(trunk.parameters()))
        trunk_groups = [{"params": weights, "lr": config.lr if whole else config.lr * config.factor}]
    groups = {
        "trunk_optimizer": [group for group in trunk_groups if group["params"]],
        "embedder_optimizer": [{"params": list(embedder.parameters()), "lr": config.lr * config.factor}],
        "metric_loss_optimizer": [{"params": list(loss.parameters()), "lr": config.proxy_lr}],
    }
    return {
        name: torch.optim.AdamW(members, weight_decay=config.weight_decay)
        for name, members in groups.items()
        if members and members[0]["params"]
    }


def make_schedulers(
    optimizers: dict[str, torch.optim.Optimizer], config: OptimizerConfig, epoch_steps: int, total_steps: int
) -> dict[str, LambdaLR]:
    """The configured schedule after its warm-up for each optimizer, stepped after every iteration."""
    warmup = round(config.warmup_epochs * epoch_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min((step - warmup) / max(total_steps - warmup, 1), 1.0)))
        if config.schedule == "step":
            return 0.5 ** (step // (config.step_epochs * epoch_steps))
        return 1.0

    return {
        name.replace("_optimizer", "_scheduler_by_iteration"): LambdaLR(optimizer, factor)
        for name, optimizer in optimizers.items()
    }
