"""register() and unregister(): reversible, idempotent, and never over something that exists."""

import pytest
import pytorch_metric_learning as pml
from pytorch_metric_learning import datasets, losses, regularizers, samplers, testers, trainers

import puma_plugin
from puma_plugin.registry import register, unregister

FOLDERS = {
    "losses": losses,
    "regularizers": regularizers,
    "samplers": samplers,
    "datasets": datasets,
    "testers": testers,
    "trainers": trainers,
}


def names() -> dict[str, dict[str, object]]:
    return {folder: dict(vars(module)) for folder, module in FOLDERS.items()}


def test_registering_adds_exactly_the_components_and_unregistering_leaves_pml_untouched() -> None:
    before = names()
    try:
        added = register()
        assert register() == added
        after = names()
        assert sorted(f"{f}.{n}" for f in after for n in after[f].keys() - before[f].keys()) == sorted(added)
        for entry in added:
            folder, name = entry.split(".")
            ours = getattr(getattr(puma_plugin, folder), name)
            assert getattr(getattr(pml, folder), name) is ours
        # What pml had is what it was.
        assert all(after[f][n] is before[f][n] for f in before for n in before[f])
    finally:
        unregister()
    assert names() == before
    unregister()
    assert names() == before


def test_an_existing_name_is_never_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = type("UnifiedTrainer", (), {})
    monkeypatch.setattr(trainers, "UnifiedTrainer", theirs, raising=False)
    before = names()
    with pytest.raises(RuntimeError, match=r"pytorch_metric_learning\.trainers\.UnifiedTrainer"):
        register()
    assert names() == before
    unregister()
    assert trainers.UnifiedTrainer is theirs


def test_importing_registers_nothing() -> None:
    assert not hasattr(samplers, "MultiDistributionSampler")
