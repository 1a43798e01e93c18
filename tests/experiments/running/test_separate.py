"""One model per distribution, each as it would be alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puma_plugin.experiments.data.splits import Splits
from puma_plugin.experiments.running.dry_run import RandomImages, Size
from puma_plugin.experiments.running.separate import SeparateRun, make_run, small_distributions, without_joint
from puma_plugin.experiments.running.training import Run
from puma_plugin.experiments.settings.config import DataConfig, LossConfig, ModelConfig, TrainConfig


def config() -> TrainConfig:
    data = DataConfig(kind="embedded", augmentation="none", image_size=64, workers=0)
    model = ModelConfig(backbone="test_vit", weights="none", method="separate", embedding_size=8)
    return TrainConfig(data, model, epochs=1, global_batch_size=8, device="cpu", threads=1)


def splits() -> Splits:
    train = {"first one": RandomImages(Size(4, 16), 0), "b": RandomImages(Size(3, 9), 1)}
    test = {"first one": RandomImages(Size(3, 7), 2), "b": RandomImages(Size(2, 6), 3)}
    return Splits(train, {}, test)  # type: ignore[arg-type]


def test_each_model_is_the_one_it_would_be_alone(tmp_path: Path) -> None:
    parts = splits()
    run = make_run(config(), parts, checkpoint=tmp_path / "checkpoint.pt")
    assert isinstance(run, SeparateRun)
    run.prepare()
    assert not list(tmp_path.iterdir())
    run.train()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-part0.pt", "checkpoint-part1.pt"}
    # The recalls that a distribution asks for, not only the first one's.
    parts.test["b"].recall_ks = (1, 3)  # type: ignore[attr-defined]
    whole = run.embed(parts.test)
    assert whole.recall_ks == {"b": (1, 3)}
    assert whole.labels[:, 1].tolist() == [0] * 7 + [1] * 6
    assert whole.distribution_names == ["first one", "b"]
    assert whole.class_names == ["first one/0", "first one/1", "first one/2", "b/0", "b/1"]
    for name, rows in (("first one", slice(0, 7)), ("b", slice(7, 13))):
        alone = Run(config(), parts.only(name))
        alone.train()
        embedded = alone.embed({name: parts.test[name]})
        assert torch.equal(whole.embeddings[rows], embedded.embeddings)
        own = embedded.evaluate().per_distribution[name]
        assert whole.evaluate().per_distribution[name] == own
    # 2 steps of 8 among 16 images, 1 among 9.
    assert run.steps == 3
    assert run.trainable == 2 * alone.trainable
    # The same files again: everything is trained already.
    again = SeparateRun(config(), parts, checkpoint=tmp_path / "checkpoint.pt")
    again.train()
    assert torch.equal(again.embed(parts.test).embeddings, whole.embeddings)


def test_small_distributions_get_more_epochs() -> None:
    run = SeparateRun(config(), splits(), minimum_steps=4)
    run.train()
    assert [part.steps for part in run.runs.values()] == [4, 4]


def test_a_distribution_smaller_than_the_batch_is_said_and_has_all_its_images_in_each() -> None:
    larger = replace(config(), global_batch_size=12)
    assert small_distributions(larger, splits()) == [
        "b: 9 training images, fewer than global_batch_size 12, so that each batch of its own model has them all"
    ]
    run = SeparateRun(larger, splits())
    run.train()
    sizes = {name: part.trainer.sampler.batch_size for name, part in run.runs.items() if part.trainer is not None}
    assert sizes == {"first one": 12, "b": 9}
    # Jointly the 25 images are enough.
    joint = replace(larger, model=replace(larger.model, method="full"))
    Run(joint, splits()).prepare()
    assert small_distributions(joint, splits()) == []


def test_joint_batch_larger_than_the_training_set() -> None:
    joint = replace(config(), model=replace(config().model, method="full"), global_batch_size=26)
    with pytest.raises(ValueError, match=r"global_batch_size is 26, but there are 25 training images \(first one, b\)"):
        Run(joint, splits()).prepare()
    pairs = replace(joint, loss=LossConfig("TripletMarginLoss"), global_batch_size=28)
    with pytest.raises(ValueError, match="set it to 24 or less"):
        Run(pairs, splits()).prepare()


def test_what_a_separate_model_refuses_names_its_distribution() -> None:
    # Batches of 8 images, 4 of a class, of two classes; "b" is given one.
    pairs = replace(config(), loss=LossConfig("TripletMarginLoss"))
    one_class = replace(splits(), train={**splits().train, "b": RandomImages(Size(1, 9), 1)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model of b: "):
        SeparateRun(pairs, one_class).prepare()


def test_all_models_are_one_file(tmp_path: Path) -> None:
    run = SeparateRun(config(), splits())
    run.train()
    run.save_model(tmp_path / "model.safetensors")
    other = SeparateRun(replace(config(), seed=1), splits())
    other.load_model(tmp_path / "model.safetensors")
    test = splits().test
    assert torch.equal(other.embed(test).embeddings, run.embed(test).embeddings)
    fewer = SeparateRun(config(), splits().only("b"))
    with pytest.raises(ValueError, match="was trained with"):
        fewer.load_model(tmp_path / "model.safetensors")


def test_figures_without_a_joint_space() -> None:
    result = {"unified": {"recall_at_1": 0.5}, "leak": 0.1, "per_distribution": {"a": {"recall_at_1": 0.4}}}
    assert without_joint(result)["unified"] is None
    assert without_joint(result)["leak"] is None
    assert without_joint(result)["per_distribution"] == result["per_distribution"]
