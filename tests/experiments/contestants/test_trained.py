"""A trained model outside of its run; what it embeds is compared with the run's own figures in tests/cli."""

import json
from pathlib import Path

import pytest

from puma_plugin.experiments.contestants.trained import load_trained


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json does not exist; give the folder of a run"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist"):
        load_trained(tmp_path)


def test_one_model_per_dataset_is_no_one_model(tmp_path: Path) -> None:
    settings = {"model": {"method": "separate"}, "data": {"kind": "image_folders", "root": "pictures"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="one model per dataset"):
        load_trained(tmp_path)


def test_settings_of_another_version_are_refused_by_name(tmp_path: Path) -> None:
    settings = {"model": {"method": "puma", "depth_scale": 2}, "data": {"kind": "image_folders", "root": "pictures"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"config\.json has the setting model\.depth_scale, which this version"):
        load_trained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config\.json is damaged and cannot be read as JSON"),
        ("[]", r"config\.json is damaged: it has no settings model"),
        ("{}", r"config\.json is damaged: it has no settings model"),
        ('{"model": 3}', r"config\.json is damaged: it has no settings model"),
        ('{"model": {"adapter_dim": "a"}}', r"config\.json cannot be used \(.*not supported between"),
        ('{"model": {"method": "linear"}}', r"config\.json is damaged: it has no settings data"),
    ],
)
def test_damaged_settings_are_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        load_trained(tmp_path)
