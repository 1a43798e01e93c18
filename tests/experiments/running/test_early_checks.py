"""Settings that are wrong whatever the images are, refused before any image is listed."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from puma_plugin.experiments.comparing.comparison import Comparison
from puma_plugin.experiments.contestants.methods import METHODS
from puma_plugin.experiments.running.early_checks import check_settings
from puma_plugin.experiments.running.session import train
from puma_plugin.experiments.settings.comparison_config import ComparisonConfig
from puma_plugin.experiments.settings.config import DataConfig, LossConfig, ModelConfig, TrainConfig

GOOD = TrainConfig(data=DataConfig(kind="embedded"), model=ModelConfig(backbone="embedded"), device="cpu")
WRONG = [
    (replace(GOOD, device="cuda:77"), "device is 'cuda:77'"),
    (
        replace(GOOD, model=ModelConfig(backbone="vit_smal_patch16_224")),
        "does not know; similar: vit_small_patch16_224",
    ),
    (replace(GOOD, model=ModelConfig(weights="no/file.pth")), "model.weights is 'no/file.pth', which is no file"),
    (replace(GOOD, loss=LossConfig("NoSuchLoss")), "loss.name is 'NoSuchLoss'"),
    (replace(GOOD, loss=LossConfig(arguments={"slope": 1})), "loss.arguments {'slope': 1} do not fit"),
    (replace(GOOD, loss=LossConfig("TripletMarginLoss", miner="No")), "loss.miner is 'No'"),
    (replace(GOOD, loss=LossConfig("TripletMarginLoss", images_per_class=1)), "loss.images_per_class is 1"),
    (replace(GOOD, data=DataConfig(kind="embedded", few_shot="no.json")), "few-shot split no.json cannot be read"),
]


def test_usable_settings_pass() -> None:
    check_settings(GOOD)
    for name in METHODS:
        check_settings(replace(GOOD, model=replace(GOOD.model, method=name)))


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_wrong_settings(config: TrainConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        check_settings(config)


def test_an_evaluation_has_no_loss() -> None:
    check_settings(replace(GOOD, loss=LossConfig("NoSuchLoss")), trains=False)


def test_they_are_refused_before_images_are_looked_for(tmp_path: Path) -> None:
    """The images are not there either, which would be said first."""
    data = DataConfig(folders={"birds": str(tmp_path / "nowhere")})
    config = replace(GOOD, data=data, loss=LossConfig("NoSuchLoss"), out=str(tmp_path / "out"))
    quiet = Console(quiet=True)
    with pytest.raises(ValueError, match="NoSuchLoss"):
        train(config, "no", "a test", quiet)
    with pytest.raises(ValueError, match=r"PUMA: loss\.name is 'NoSuchLoss'"):
        Comparison(ComparisonConfig(train=config), [METHODS["puma"]], quiet).rate_jobs()
    assert not (tmp_path / "out").exists()
