"""A dry run says what the run itself would need."""

import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from puma_plugin.cli.main import main
from puma_plugin.cli.parsing import make_parser, packaged_config, parse
from puma_plugin.experiments.contestants.build import build_model, trainable_count
from puma_plugin.experiments.running.dry_run import RandomImages, Size, dry_run, training_sizes
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, TrainConfig


def small(**values) -> TrainConfig:
    data = DataConfig(kind="embedded", augmentation="pad_crop", workers=0)
    model = ModelConfig(backbone="embedded", adapter_dim=8, pool_size=4, prompt_length=2, embedding_size=16)
    return TrainConfig(data, model, global_batch_size=16, device="cpu", threads=1, **values)


def test_figures_of_a_small_run() -> None:
    sizes = {"a": Size(30, 100), "b": Size(10, 61)}
    found = dry_run(small(epochs=7), sizes, "made up", Console(quiet=True))
    # 6 blocks of width 128.
    assert found.weights == {
        "adapters": 6 * 2 * 2 * 128 * 8,
        "prompts": 4 * 2 * 128 + 2 * 4 * 128,
        "head": 128 * 16 + 16,
    }
    assert found.trainable == sum(found.weights.values())
    assert found.proxies == 40 * 16
    # 161 images in whole batches of 16.
    assert found.steps == 7 * 10
    assert found.seconds_per_step > 0
    assert found.memory_gib > 0.1
    text = found.text()
    assert "40 classes, 161 images, 2 distributions" in text
    assert "whole run: 70 steps, about" in text
    assert "made up" in text


def test_separate_models_are_counted_together() -> None:
    config = small(epochs=7)
    config.model.method = "separate"
    found = dry_run(config, {"a": Size(30, 100), "b": Size(10, 61)}, "made up", Console(quiet=True))
    trunk, head = build_model(config.model, seed=0)
    assert found.trainable == found.total == 2 * trainable_count(trunk, head)
    assert found.proxies == 40 * 16
    # 100 images are 6 batches of 16, 61 are 3.
    assert found.steps == 7 * (6 + 3)


def test_random_images_share_the_classes_evenly_and_repeat() -> None:
    images = RandomImages(Size(3, 8), seed=1)
    assert np.bincount(images.targets).tolist() == [3, 3, 2]
    first, again = np.asarray(images[5][0]), np.asarray(images[5][0])
    assert (first == again).all()
    assert (first != np.asarray(images[6][0])).any()


def test_sizes_are_counted_in_the_data_or_given() -> None:
    sizes, source = training_sizes(DataConfig(kind="embedded", shots=1, validation_fraction=0.0))
    assert len(sizes) == 8
    assert all(size.images == size.classes for size in sizes.values())
    assert "counted" in source
    assert training_sizes(DataConfig(kind="embedded"), 12, 40)[0] == {"random": Size(12, 40)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--classes", "5"], "belong together"),
        (["--dry-run", "--classes", "5", "--images", "3"], "an image for each"),
        (["--classes", "5", "--images", "9"], "are for --dry-run"),
        (["--dry-run", "--classes", "9", "--images", "90", "--model.method", "frozen"], "trains nothing"),
        (
            ["--dry-run", "--classes", "9", "--images", "90", "--global_batch_size", "90", "--epochs", "1"],
            "has 1 steps",
        ),
    ],
)
def test_refusals(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["--data.kind", "embedded", "--model.backbone", "embedded", "--device", "cpu", "--data.workers", "0"]
    assert main(["train", *base, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux reports it")
def test_the_papers_run_at_full_size(tmp_path: Path) -> None:
    """The published counts; on a CPU this takes minutes and up to 24 GiB."""
    parser = make_parser("train", "", TrainConfig)
    arguments = ["--config", packaged_config("paper"), "--data.root", str(tmp_path / "none"), "--data.workers", "1"]
    config, _ = parse(parser, TrainConfig, arguments)
    sizes, source = training_sizes(config.data)
    found = dry_run(config, sizes, source, Console(quiet=True))
    assert found.weights == {"adapters": 2_359_296, "prompts": 76_800, "head": 49_280}
    assert found.trainable == 2_485_376
    assert sum(size.classes for size in sizes.values()) == 15_952
    assert found.proxies == 15_952 * 128
    assert found.batch_size == 180
    assert found.steps == 100 * (sum(size.images for size in sizes.values()) // 180)
    assert found.memory_gib < 24
    assert "random weights in place of the pretrained ones" in found.text()
