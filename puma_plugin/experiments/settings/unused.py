"""Settings that a run does not look at, so that varying them would only repeat it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from puma_plugin.experiments.settings.config import TrainConfig


def _trained(config: TrainConfig) -> bool:
    return config.model.trains


def _adapters(config: TrainConfig) -> bool:
    return config.model.has_adapters and config.model.blocks != []


def _random_crops(config: TrainConfig) -> bool:
    return _trained(config) and config.data.augmentation == "random_resized_crop"


_USES: dict[str, Callable[[TrainConfig], bool]] = {
    "model.adapter_dim": _adapters,
    "model.drop": lambda config: _adapters(config) and config.model.method != "adaptformer",
    "model.scale": _adapters,
    "model.trainable_scale": _adapters,
    "model.init": lambda config: config.model.has_adapters,
    "model.blocks": lambda config: config.model.has_adapters,
    "model.pool_size": lambda config: config.model.method == "puma",
    "model.prompt_length": lambda config: config.model.has_pool or config.model.has_visual_prompts,
    "model.lora_rank": lambda config: config.model.method == "lora",
    "model.lora_alpha": lambda config: config.model.method == "lora",
    "model.embedding_size": _trained,
    "loss": _trained,
    "optimizer": _trained,
    "optimizer.step_epochs": lambda config: _trained(config) and config.optimizer.schedule == "step",
    "epochs": _trained,
    "global_batch_size": _trained,
    "max_batch_per_process": _trained,
    "sampling": _trained,
    # Separate models are validated after their last epoch only.
    "validate_every": lambda config: _trained(config) and not config.model.is_separate,
    # A head trained alone sees the features of a backbone in evaluation mode.
    "compile": lambda config: _trained(config) and config.model.method != "linear",
    "data.augmentation": _trained,
    "data.flip": _random_crops,
    "data.crop_scale": _random_crops,
    "data.shots": _trained,
    "data.few_shot": _trained,
    "data.starved": _trained,
}
"""Setting, or a part with all its settings -> whether a run looks at it; a setting that is not here counts always."""

WITHOUT_EFFECT = frozenset(["out", "report", "checkpoint_minutes", "process_timeout", "data.workers"])
"""Settings of how the work is done that change nothing of what comes of it, whatever the method.

Random transforms follow from the image, not from the process that reads it. Not here is what changes the order of sums
(device, threads, compile, how many images pass the network at once): a training makes other figures of other rounding.
"""


def is_unused(config: TrainConfig, name: str) -> bool:
    """Whether a run of this configuration would be the same with any other value of a setting.

    Args:
        config: the run's configuration; some settings matter with certain values of others only.
        name: dotted, such as "model.drop" or "loss.arguments.margin".
    """
    parts = name.split(".")
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(not _USES[prefix](config) for prefix in prefixes if prefix in _USES)


def used_settings(config: TrainConfig, apart_from: Collection[str] = ()) -> dict[str, Any]:
    """The settings that a run of this configuration looks at, as nested dictionaries.

    Args:
        apart_from: dotted names of further settings to leave out.
    """
    return _used(config, apart_from, asdict(config), "")


def _used(config: TrainConfig, apart_from: Collection[str], values: Mapping[str, Any], within: str) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        place = f"{within}{name}"
        if place not in apart_from and not is_unused(config, place):
            found[name] = _used(config, apart_from, value, f"{place}.") if isinstance(value, dict) else value
    return found


def identity(config: TrainConfig) -> dict[str, Any]:
    """What is the same for two configurations exactly if they are the same run, whatever they call the method.

    These are the settings that it looks at, with the methods that are PUMA without some of its parts written as that.
    """
    model = config.model
    if model.has_adapters:
        drop, pool_size = model.effective_drop, model.effective_pool_size
        config = replace(config, model=replace(model, method="puma", drop=drop, pool_size=pool_size))
    return used_settings(config)
