"""Make the components reachable by name from pml's own namespaces, on request and reversibly."""

import importlib
from types import ModuleType

# What pml has a folder for; the benchmark datasets, some of which pml has under the same names, are not among them.
_COMPONENTS = {
    "losses": ("CurricularFaceLoss", "GatheredLoss"),
    "regularizers": ("OrthogonalityRegularizer", "PromptPenalty"),
    "samplers": ("MultiDistributionSampler",),
    "datasets": ("UnifiedDataset",),
    "testers": ("MultiDistributionTester",),
    "trainers": ("UnifiedTrainer",),
}


def register() -> list[str]:
    """Put the components into pml's namespaces, for scripts that look them up by name.

    After it ``getattr(pytorch_metric_learning.samplers, "MultiDistributionSampler")`` finds ours. Never run by an
    import. Calling it again changes nothing.

    Returns:
        The names now reachable, as "samplers.MultiDistributionSampler".

    Raises:
        RuntimeError: pml has something else under one of the names; nothing is changed then.
    """
    names = _components()
    taken = [
        f"pytorch_metric_learning.{folder}.{name}"
        for folder, name, component in names
        if getattr(_pml(folder), name, component) is not component
    ]
    if taken:
        raise RuntimeError(
            f"pytorch-metric-learning already has {', '.join(taken)}; register() does not hide existing names. "
            "Import ours from puma_plugin instead"
        )
    for folder, name, component in names:
        setattr(_pml(folder), name, component)
    return [f"{folder}.{name}" for folder, name, _ in names]


def unregister() -> None:
    """Take the components out of pml's namespaces again; what is not ours is left alone."""
    for folder, name, component in _components():
        if vars(_pml(folder)).get(name) is component:
            delattr(_pml(folder), name)


def _components() -> list[tuple[str, str, object]]:
    return [
        (folder, name, getattr(importlib.import_module(f"puma_plugin.{folder}"), name))
        for folder, names in _COMPONENTS.items()
        for name in names
    ]


def _pml(folder: str) -> ModuleType:
    return importlib.import_module(f"pytorch_metric_learning.{folder}")
