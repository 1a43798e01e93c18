"""A job that was stopped, and what is left of it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puma_plugin.experiments.comparing.jobs import Job, run_job
from puma_plugin.experiments.contestants.methods import METHODS
from puma_plugin.experiments.data.splits import load_splits
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, TrainConfig
from puma_plugin.experiments.settings.overrides import override
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
    # Nothing is left but the record, and what the other one can still go on from.
    assert set((tmp_path / "stopped" / "jobs").iterdir()) == {other.path(), first.checkpoint}


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


def test_results_of_other_settings_lie_beside_each_other(tmp_path: Path) -> None:
    first = replace(job(tmp_path), keep_model=True)
    record = run_job(first, lambda content: None)
    other = replace(first, config=replace(first.config, optimizer=replace(first.config.optimizer, lr=1e-2)))
    changed = run_job(replace(other, keep_model=False), lambda content: None)
    assert record["result"] != changed["result"]
    assert first.finished() == json.loads(json.dumps(record))
    assert replace(other, keep_model=False).finished() == json.loads(json.dumps(changed))
    # Whose embeddings were not asked for, and are not those of the first.
    assert other.finished() is None
    assert set((tmp_path / "jobs").iterdir()) == {
        *(first.path(suffix) for suffix in (".json", ".npz", ".safetensors")),
        other.path(),
    }


OTHER_WAYS = {"out": "elsewhere", "report": False, "checkpoint_minutes": 1.0, "process_timeout": 9.0, "data.workers": 3}
OTHER_ROUNDING = {"device": "cuda", "threads": 2, "evaluation_batch_size": 16, "max_batch_per_process": 8}


def test_what_changes_nothing_does_not_count(tmp_path: Path) -> None:
    linear = job(tmp_path)

    def with_settings(one: Job, settings: Mapping[str, Any]) -> Path:
        return replace(one, config=override(one.config, settings)).path()

    assert with_settings(linear, OTHER_WAYS) == linear.path()
    for name, value in OTHER_ROUNDING.items():
        assert with_settings(linear, {name: value}) != linear.path(), name
    # Settings that the method does not look at; adapters do.
    others = {"model.adapter_dim": 8, "model.pool_size": 3, "compile": True}
    assert with_settings(linear, others) == linear.path()
    puma = replace(linear, config=override(linear.config, {"model.method": "puma"}))
    for name, value in others.items():
        assert with_settings(puma, {name: value}) != puma.path(), name


def test_fewest_steps_count_for_separate_models_only(tmp_path: Path) -> None:
    linear = job(tmp_path)
    assert replace(linear, minimum_steps=80).path() == linear.path()
    separate = replace(linear, config=override(linear.config, {"model.method": "separate"}))
    assert replace(separate, minimum_steps=80).path() != separate.path()


def test_a_finished_job_leaves_what_is_kept_of_other_settings(tmp_path: Path) -> None:
    """Unfinished runs of these, too: going back to them goes on there."""
    own = job(tmp_path)
    other = replace(own, config=replace(own.config, epochs=3))
    own.path().parent.mkdir()
    stay = [one.path(suffix) for one in (own, other) for suffix in (".json", ".npz", ".safetensors")]
    stay += [other.checkpoint, other.path("-part3.ckpt")]
    for path in (*stay, own.checkpoint, own.path("-part3.ckpt"), own.log, other.log):
        path.write_text("{}")
    own.tidy()
    assert set(own.path().parent.iterdir()) == set(stay)


def test_forgetting_a_job_leaves_the_files_of_others(tmp_path: Path) -> None:
    own = job(tmp_path)
    folder = own.path().parent
    folder.mkdir()
    # Also those of other settings, and of separate models.
    other = replace(own, config=replace(own.config, epochs=3))
    gone = [one.path(suffix) for one in (own, other) for suffix in (".json", ".npz", ".safetensors", ".ckpt", ".log")]
    gone += [other.path("-part3.ckpt")]
    stay = [replace(own, config=replace(own.config, seed=10)).path(), folder / "notes.txt"]
    stay += [replace(own, purpose="rate").path()]
    for path in (*gone, *stay):
        path.write_text("{}")
    own.forget()
    assert sorted(folder.iterdir()) == sorted(stay)
