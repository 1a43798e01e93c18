"""Settings by dotted name."""

import pytest

from puma_plugin.experiments.settings.config import DataConfig, TrainConfig
from puma_plugin.experiments.settings.overrides import override


def config() -> TrainConfig:
    return TrainConfig(DataConfig(kind="embedded"))


def test_settings_at_every_depth() -> None:
    changed = override(
        config(), {"epochs": 3, "model.drop": 0.25, "loss.arguments.ema": "global", "loss.arguments.margin": 0.2}
    )
    assert (changed.epochs, changed.model.drop) == (3, 0.25)
    assert changed.loss.arguments == {"ema": "global", "margin": 0.2}
    # A part given whole, and more inside of it, whatever the order.
    whole = {"loss.arguments.margin": 5, "loss.arguments": {"scale": 64}}
    assert override(config(), whole).loss.arguments == {"scale": 64, "margin": 5}
    assert (config().epochs, config().loss.arguments) == (100, {})


def test_settings_of_one_part_change_together() -> None:
    # No blocks is refused without prompts, so one after the other would fail.
    changed = override(config(), {"model.blocks": [], "model.method": "puma"})
    assert changed.model.blocks == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": 1}, "there is no setting 'speed'"),
        ({"model.speed": 1}, "there is no setting 'model.speed'"),
        ({"model.drop": 1.5}, "model.drop is 1.5"),
        ({"epochs.more": 1}, "epochs is 100 and has no setting 'more' inside"),
        ({"model.drop.more": 1}, "model.drop is 0.5 and has no setting 'more' inside"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(config(), settings)
