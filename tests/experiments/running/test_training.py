"""What a run trains at which rate, and what it tells of its prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from puma_plugin.experiments.data.splits import Splits
from puma_plugin.experiments.running.dry_run import RandomImages, Size
from puma_plugin.experiments.running.inputs import make_inputs
from puma_plugin.experiments.running.processes import Processes
from puma_plugin.experiments.running.training import Run
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from puma_plugin.trainers import batch_share


def config(**model: Any) -> TrainConfig:
    data = DataConfig(kind="embedded", augmentation="none", image_size=64, workers=0)
    settings = ModelConfig(backbone="test_vit", weights="none", embedding_size=8, **model)
    return TrainConfig(data, settings, epochs=1, global_batch_size=8, device="cpu", threads=1, seed=3)


def test_prompt_weights_are_the_means_of_the_images_of_each_distribution() -> None:
    sets: Any = {"first one": RandomImages(Size(3, 7), 2), "b": RandomImages(Size(2, 6), 3)}
    run = Run(config(method="puma"), Splits({}, {}, sets))
    with torch.no_grad():
        run.trunk.prompt_pool.keys.normal_()
    found = run.prompt_weights(sets)
    assert found is not None
    run.trunk.eval()
    for row, images in zip(found, sets.values(), strict=True):
        inputs = torch.stack([run.inputs.evaluation_transform(images[i][0]) for i in range(len(images))])
        with torch.no_grad():
            expected = run.trunk.prompt_weights(inputs).mean(dim=0)
        torch.testing.assert_close(torch.from_numpy(row), expected)
    assert not torch.allclose(*map(torch.from_numpy, found))
    for without in ({"method": "puma", "pool_size": 0}, {"method": "linear"}):
        assert Run(config(**without), Splits({}, {}, sets)).prompt_weights(sets) is None


@pytest.mark.parametrize(("augmentation", "margin"), [("none", 0), ("pad_crop", 4)])
def test_pictures_of_the_embedded_benchmark_are_moved_in_training_only(augmentation: Any, margin: int) -> None:
    data = DataConfig(kind="embedded", augmentation=augmentation, workers=0)
    run = Run(TrainConfig(data, ModelConfig("embedded"), device="cpu", threads=1), Splits({}, {}, {}))
    assert run.inputs.train_batch is not None
    assert run.inputs.evaluation_batch is not None
    assert (run.inputs.train_batch.margin, run.inputs.evaluation_batch.margin) == (margin, 0)
    # Each process moves its share as one process would.
    shared = make_inputs(run.config, run.trunk, Processes(1, 2)).train_batch
    assert shared is not None
    assert shared.place == (1, 2)


def test_pictures_are_evaluated_without_chance() -> None:
    settings = config(method="linear")
    settings.data.augmentation = "random_resized_crop"
    inputs = Run(settings, Splits({}, {}, {})).inputs
    picture = Image.effect_noise((80, 70), 90).convert("RGB")
    for transform, alike in ((inputs.train_transform, False), (inputs.evaluation_transform, True)):
        assert torch.equal(transform(picture), transform(picture)) == alike


def trained_splits() -> Splits:
    train: Any = {"first one": RandomImages(Size(4, 16), 0), "b": RandomImages(Size(3, 9), 1)}
    return Splits(train, {}, train)


@pytest.mark.parametrize(
    ("sampling", "method", "balance", "penalty", "frozen"),
    [
        ("proportional", "puma", "proportional", 1.0, ()),
        ("balanced", "adapters", "uniform", 0.0, ()),
        ("balanced", "linear", "uniform", 0.0, ("trunk",)),
    ],
)
def test_settings_reach_sampler_and_trainer(
    sampling: Any, method: str, balance: str, penalty: float, frozen: tuple[str, ...]
) -> None:
    given = config(method=method)
    settings = replace(
        given, sampling=sampling, precision="bf16", validate_every=3, optimizer=OptimizerConfig(clip=0.3)
    )
    run = Run(settings, trained_splits())
    run.prepare()
    trainer = run.trainer
    assert trainer is not None
    assert (trainer.sampler.balance, trainer.sampler.seed, trainer.sampler.m) == (balance, 3, None)
    assert (trainer.seed, trainer.clip_value, trainer.amp_dtype) == (3, 0.3, torch.bfloat16)
    assert (trainer.prompt_penalty_weight, tuple(trainer.freeze_these)) == (penalty, frozen)
    assert trainer.evaluate_every == 3
    # Images of files are transformed one by one, each by a seed of its own.
    assert trainer.seed_items
    assert run.steps == 25 // 8


@pytest.mark.parametrize(
    ("images", "asked", "world", "m", "expected"),
    [
        (100, 32, 4, None, 32),
        (100, 33, 4, None, "set global_batch_size to 32"),
        (20, 32, 1, None, "global_batch_size is 32, but there are 20 training images .* set it to 20 or less"),
        (23, 32, 2, 3, "set it to 18 or less"),
    ],
)
def test_batch_size(images: int, asked: int, world: int, m: int | None, expected: int | str) -> None:
    run = Run(replace(config(method="linear"), global_batch_size=asked), Splits({"a": range(images)}, {}, {}))  # type: ignore[dict-item]
    run.processes = replace(run.processes, world_size=world)
    if m is not None:
        run.config.loss.images_per_class = m
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            run._batch_size(images)
    else:
        assert run._batch_size(images) == expected
        assert run._share() == expected // world


@pytest.mark.parametrize("piece", [None, 3])
def test_a_compiled_run_learns_the_same(piece: int | None, graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = torch.compile(batch_share._call, dynamic=False, backend=graphs.backend)
    monkeypatch.setattr(batch_share, "_compiled_call", lambda: call)
    losses, embedded = [], []
    for compiles in (False, True):
        settings = replace(config(method="puma"), compile=compiles, max_batch_per_process=piece, epochs=2)
        run = Run(settings, trained_splits())
        run.train()
        assert any("adapter" in name for name in graphs.operators) == compiles
        losses.append([entry["metric_loss"] for entry in run.history])
        embedded.append(run.embed(run.splits.test).embeddings)
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    torch.testing.assert_close(embedded[1], embedded[0], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_compiled_is_said_with_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    run = Run(replace(config(method="adapters", blocks=[0]), compile=True), trained_splits())
    advice = r"compile is true, but .*/nowhere/c\+\+.*; install what it lacks, or set compile to false"
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/c++")}), pytest.raises(ValueError, match=advice):
        run.train()


def test_a_dynamo_error_of_other_code_is_not_blamed_on_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    run = Run(config(method="linear"), trained_splits())
    run.prepare()
    monkeypatch.setattr(run.trunk, "forward", Mock(side_effect=Unsupported("a compiled hook of the user's")))
    with pytest.raises(Unsupported, match="hook of the user"):
        run.train()


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)",
        "DataLoader worker (pid 26395) is killed by signal: Killed. ",
    ],
)
def test_processes_that_read_images_and_end_are_told_with_the_setting(text: str) -> None:
    run = Run(config(method="linear"), trained_splits())
    with (
        pytest.raises(ValueError, match=r"a process that reads images ended \(.*set data.workers to fewer.*shm-size"),
        run._enough_memory("evaluation_batch_size", 4),
    ):
        raise RuntimeError(text)


def test_what_else_a_process_that_reads_images_raises_is_left_as_it_is() -> None:
    text = (
        "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: stack expects each tensor to be equal size"
    )
    run = Run(config(method="linear"), trained_splits())
    with pytest.raises(RuntimeError, match="stack expects"), run._enough_memory("evaluation_batch_size", 4):
        raise RuntimeError(text)


class Killed(Exception):
    """Stands for a signal that cannot be handled."""


@pytest.mark.parametrize(("minutes", "kept"), [(0.0, 4), (10.0, 3), (None, 3)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(minutes: float | None, kept: int, tmp_path: Path) -> None:
    """Epochs of three steps; death comes in the fifth step, the second of its epoch, before it is kept."""
    settings = replace(config(method="puma"), epochs=3, checkpoint_minutes=minutes)
    whole = Run(settings, trained_splits())
    whole.train()

    def die(content: dict[str, Any]) -> None:
        if content["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        Run(settings, trained_splits(), tmp_path / "checkpoint.pt", die).train()
    told: list[dict[str, Any]] = []
    run = Run(settings, trained_splits(), tmp_path / "checkpoint.pt", told.append)
    run.train()
    assert told[0] == {"step": kept, "steps": 9, "resumed": True}
    assert [entry["metric_loss"] for entry in run.history] == [entry["metric_loss"] for entry in whole.history]
    torch.testing.assert_close(run.embed(run.splits.test).embeddings, whole.embed(run.splits.test).embeddings)


def test_a_checkpoint_within_an_epoch_is_written_when_the_last_one_is_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a clock by which every step takes a minute: an epoch's own checkpoint counts as well."""
    clock = Mock()
    clock.monotonic.return_value = 0.0
    monkeypatch.setattr("puma_plugin.experiments.running.training.time", clock)

    def tick(content: dict[str, Any]) -> None:
        clock.monotonic.return_value += 60.0

    settings = replace(config(method="linear"), epochs=2, global_batch_size=3, checkpoint_minutes=4.0)  # 8 steps each
    run = Run(settings, trained_splits(), tmp_path / "checkpoint.pt", tick)
    run.prepare()
    trainer, steps = run.trainer, []
    assert trainer is not None
    monkeypatch.setattr(trainer, "save_checkpoint", lambda path: steps.append(trainer.global_step))
    run.train()
    assert steps == [5, 8, 13, 16]
