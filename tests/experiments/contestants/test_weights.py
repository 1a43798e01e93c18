"""The file of trained weights of any method: what it holds, and what it refuses to be read as."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from puma_plugin.experiments.contestants.build import build_model
from puma_plugin.experiments.contestants.weights import load_weights, save_weights
from puma_plugin.experiments.settings.config import ModelConfig

LINEAR = ModelConfig(backbone="embedded", method="linear", embedding_size=16)


def make(config: ModelConfig, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    return build_model(config, seed=seed, image_size=None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_weights(LINEAR, *make(LINEAR), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def changed(file: Path, **metadata: str) -> Path:
    with safe_open(file, framework="pt") as opened:
        whole = {**opened.metadata(), **metadata}
    save_file(load_file(file), file, whole)
    return file


def test_only_what_was_trained_is_in_the_file_and_comes_back(file: Path) -> None:
    assert set(load_file(file)) == {"head.linear.weight", "head.linear.bias"}
    trunk, head = make(LINEAR, seed=1)
    load_weights(LINEAR, trunk, head, file)
    for name, weight in make(LINEAR)[1].named_parameters():
        torch.testing.assert_close(dict(head.named_parameters())[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"puma_run": "puma_plugin run 9"}, r"has the format 'puma_plugin run 9', this puma_plugin reads 'puma_plugin"),
        ({"method": "full"}, "is of method 'full' on backbone"),
        ({"settings": '{"distributions": 2}'}, "was trained with"),
        ({"frozen": "0"}, "was trained on another backbone"),
    ],
)
def test_another_file_is_refused_and_nothing_is_loaded(file: Path, metadata: dict[str, str], message: str) -> None:
    trunk, head = make(LINEAR, seed=1)
    with pytest.raises(ValueError, match=message):
        load_weights(LINEAR, trunk, head, changed(file, **metadata))
    for name, weight in make(LINEAR, seed=1)[1].named_parameters():
        assert torch.equal(dict(head.named_parameters())[name], weight)


def test_other_sizes_and_files_that_are_no_runs(file: Path, tmp_path: Path) -> None:
    wider = replace(LINEAR, embedding_size=32)
    with pytest.raises(ValueError, match=r"does not fit the configured model: head\.linear\.bias differs"):
        load_weights(wider, *make(wider), file)
    save_file(load_file(file), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="is not a file of `puma train` with method 'linear'; give the run's own"):
        load_weights(LINEAR, *make(LINEAR), tmp_path / "plain.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        load_weights(LINEAR, *make(LINEAR), file)


def test_a_backbone_may_have_frozen_scalars(tmp_path: Path) -> None:
    """As timm's NFNets have: a gain of their own in every block."""
    path, trunk = tmp_path / "model.safetensors", make(LINEAR)[0]
    trunk.gain = nn.Parameter(torch.tensor(0.5), requires_grad=False)
    head = make(LINEAR)[1]
    save_weights(LINEAR, trunk, head, path)
    load_weights(LINEAR, trunk, head, path)
    with torch.no_grad():
        trunk.gain.fill_(0.25)
    with pytest.raises(ValueError, match="was trained on another backbone"):
        load_weights(LINEAR, trunk, head, path)
