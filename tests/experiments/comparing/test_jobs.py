"""A job that was stopped, and what is left of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puma_plugin.experiments.comparing.jobs import Job, run_job
from puma_plugin.experiments.contestants.methods import METHODS
from puma_plugin.experiments.data.splits import load_splits
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, TrainConfig
from puma_plugin.trainers import NonFiniteLossError


def job(folder: Path) -> Job:
    data = DataConfig(kind="embedded", shots=1, validation_fraction=0.0, augmentation="none", workers=0)
    model = ModelConfig(backbone="embedded", method="linear", embedding_size=16)
    config = TrainConfig(data, model, epochs=2, global_batch_size=64, device="cpu", threads=1)
    return Job(METHODS["linear"], 1.0, "test", config, 1, str(folder))


def stop(content: dict[str, Any]) -> None:
    """Progress that breaks a run off half-way."""
    if content.get("step", 0) > content.get("steps", 0) / 2:
        raise KeyboardInterrupt


def test_only_the_same_settings_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    first = job(tmp_path / "stopped")

    with pytest.raises(KeyboardInterrupt):
        run_job(first, stop)
    assert first.checkpoint.exists()
    steps: list[int] = []
    other = replace(first, config=replace(first.config, optimizer=replace(first.config.optimizer, lr=1e-2)))
    changed = run_job(other, lambda content: steps.append(content.get("step", 0)))
    assert 1 in steps, "a run with another learning rate has gone on from this one's checkpoint"
    fresh = run_job(replace(other, folder=str(tmp_path / "fresh")), lambda content: None)
    assert changed["result"] == fresh["result"]
    # Nothing is left but the record.
    assert {path.name for path in (tmp_path / "stopped" / "jobs").iterdir()} == {f"{first.key}.json"}


def test_a_stopped_job_goes_on(tmp_path: Path) -> None:
    whole = run_job(job(tmp_path / "whole"), lambda content: None)
    stopped = job(tmp_path / "stopped")

    with pytest.raises(KeyboardInterrupt):
        run_job(stopped, stop)
    steps: list[int] = []
    record = run_job(stopped, lambda content: steps.append(content.get("step", 0)))
    assert 1 not in steps
    assert record["result"] == whole["result"]
    assert json.loads(stopped.path().read_text(encoding="utf-8")) == record


def test_a_rate_that_diverges_in_its_last_step_has_lost(tmp_path: Path) -> None:
    one = job(tmp_path)
    # One step with all images: its loss and gradients are finite, and then the weights are not.
    data = replace(one.config.data, validation_fraction=0.5)
    images = sum(len(part) for part in load_splits(data).train.values())
    optimizer = replace(one.config.optimizer, lr=3e36)
    one = replace(one, config=replace(one.config, data=data, epochs=1, global_batch_size=images, optimizer=optimizer))
    record = run_job(replace(one, purpose="rate"), lambda content: None)
    assert record["validation"] == [{"epoch": 1, "harmonic": 0.0, "unified": 0.0}]
    assert "evaluated on held-out training classes" in record["diverged"]
    with pytest.raises(NonFiniteLossError, match=r"training diverged in epoch 1 \(step 1\).*Lower the learning rate"):
        run_job(one, lambda content: None)


def test_kept_results_know_the_files_they_depend_on(tmp_path: Path) -> None:
    weights = tmp_path / "backbone.pth"
    weights.write_bytes(b"first")
    first = job(tmp_path)
    model = ModelConfig("test_vit", str(weights), "linear")
    first = replace(first, config=replace(first.config, model=model), data_files="abc")
    first.path().parent.mkdir()
    first.path().write_text(json.dumps({"settings": first.settings()}))
    assert first.finished() is not None
    assert replace(first, data_files="abd").finished() is None
    weights.write_bytes(b"other")
    assert first.finished() is None
    weights.write_bytes(b"first")
    assert first.finished() is not None


def test_embeddings_of_other_settings_are_not_kept(tmp_path: Path) -> None:
    first = replace(job(tmp_path), keep_model=True)
    run_job(first, lambda content: None)
    assert first.finished() is not None
    config = replace(first.config, optimizer=replace(first.config.optimizer, lr=1e-2))
    run_job(replace(first, config=config, keep_model=False), lambda content: None)
    assert replace(first, config=config, keep_model=False).finished() is not None
    assert replace(first, config=config).finished() is None


def test_forgetting_a_job_leaves_the_files_of_others(tmp_path: Path) -> None:
    own = job(tmp_path)
    folder = own.path().parent
    folder.mkdir()
    # Also those of other settings, and of separate models.
    gone = [own.path(".json"), own.path(".npz"), own.path(".safetensors"), own.checkpoint]
    gone += [own.path("-0123456789ab.ckpt"), own.path("-0123456789ab-part3.ckpt")]
    stay = [replace(own, config=replace(own.config, seed=10)).path(), folder / "notes.txt"]
    stay += [replace(own, purpose="rate").path()]
    for path in (*gone, *stay):
        path.write_text("{}")
    own.forget()
    assert sorted(folder.iterdir()) == sorted(stay)
