"""What is called unused has no effect, and the rest has one."""

from dataclasses import fields, replace

import pytest
import torch

from puma_plugin.experiments.contestants.build import build_model
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from puma_plugin.experiments.settings.unused import identity, is_unused, used_settings

OTHER = {
    "adapter_dim": 8,
    "drop": 0.25,
    "scale": 0.3,
    "trainable_scale": True,
    "init": "paper",
    "blocks": [0],
    "pool_size": 4,
    "prompt_length": 3,
    "lora_rank": 2,
    "lora_alpha": 5.0,
    "embedding_size": 16,
}
SMALL = ModelConfig(backbone="embedded", adapter_dim=4, pool_size=3, prompt_length=2, lora_rank=4, embedding_size=8)


def run_of(model: ModelConfig) -> TrainConfig:
    return TrainConfig(DataConfig(kind="embedded"), model)


def model_and_output(config: ModelConfig) -> list[torch.Tensor]:
    """Every trained weight as it starts, and the embeddings of a training pass."""
    trunk, embedder = build_model(config, seed=0)
    trained = [weight for part in (trunk, embedder) for weight in part.parameters() if weight.requires_grad]
    start = [weight.detach().clone() for weight in trained]
    with torch.no_grad():
        for weight in trained:
            weight += 0.01  # updates that start at zero would hide their scale
    torch.manual_seed(1)
    return [*start, embedder(trunk.train()(torch.randn(4, 3, 32, 32)))]


@pytest.mark.parametrize("setting", OTHER)
@pytest.mark.parametrize(
    "method", ["frozen", "linear", "full", "lora", "vpt_shallow", "vpt_deep", "adaptformer", "adapters", "puma"]
)
def test_settings_of_the_model(method: str, setting: str) -> None:
    before = replace(SMALL, method=method)  # type: ignore[arg-type]
    after = replace(before, **{setting: OTHER[setting]})
    tensors = model_and_output(before), model_and_output(after)
    same = len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))
    assert is_unused(run_of(before), f"model.{setting}") == same
    assert is_unused(run_of(after), f"model.{setting}") == same


def test_settings_that_matter_with_certain_values_of_others() -> None:
    puma = run_of(SMALL)
    prompts_only = run_of(replace(SMALL, blocks=[]))
    assert is_unused(prompts_only, "model.drop")
    assert not is_unused(prompts_only, "model.blocks")
    assert not is_unused(prompts_only, "model.init")
    assert is_unused(run_of(replace(SMALL, pool_size=0)), "model.prompt_length")
    assert is_unused(puma, "optimizer.step_epochs")
    assert not is_unused(replace(puma, optimizer=OptimizerConfig(schedule="step")), "optimizer.step_epochs")
    assert not is_unused(puma, "data.flip")
    assert not is_unused(puma, "compile")
    assert is_unused(run_of(replace(SMALL, method="linear")), "compile")
    assert is_unused(replace(puma, data=DataConfig(kind="embedded", augmentation="none")), "data.flip")


def test_what_is_not_trained_looks_at_the_test_only() -> None:
    frozen = run_of(replace(SMALL, method="frozen"))
    for name in (
        *("loss.name", "loss.arguments.margin", "optimizer.lr", "epochs", "data.shots", "data.augmentation"),
        *("max_batch_per_process", "validate_every"),
    ):
        assert is_unused(frozen, name)
        assert not is_unused(run_of(SMALL), name)
    for name in ("data.names", "data.image_size", "data.seed", "model.backbone", "precision"):
        assert not is_unused(frozen, name)


def test_settings_that_are_left() -> None:
    frozen = run_of(replace(SMALL, method="frozen"))
    left = used_settings(frozen, apart_from=("out", "data.workers"))
    assert "loss" not in left
    assert "out" not in left
    assert left["model"] == {"backbone": "embedded", "weights": "pretrained", "method": "frozen"}
    assert left["data"].keys() == used_settings(frozen)["data"].keys() - {"workers"}
    puma = run_of(SMALL)
    unused = {"lora_rank", "lora_alpha"}
    assert used_settings(puma)["model"].keys() == {field.name for field in fields(ModelConfig)} - unused
    assert used_settings(puma)["loss"]["arguments"] == {}


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("pool_size", [0, 3])
@pytest.mark.parametrize("method", ["puma", "adapters", "adaptformer", "lora"])
def test_one_run_under_two_names(method: str, pool_size: int, drop: float) -> None:
    """Those that are the same as adapters without drop, and no others."""
    adapters = replace(SMALL, method="adapters", drop=0.0)
    other = replace(SMALL, method=method, drop=drop, pool_size=pool_size)  # type: ignore[arg-type]
    tensors = model_and_output(adapters), model_and_output(other)
    same = len(tensors[0]) == len(tensors[1]) and all(map(torch.equal, *tensors))
    assert (identity(run_of(adapters)) == identity(run_of(other))) == same
