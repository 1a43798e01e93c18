"""The rows that a grid is made of."""

import re
from dataclasses import replace

import pytest

from puma_plugin.cli.parsing import make_parser, packaged_config, parse
from puma_plugin.experiments.comparing.grid import expand, not_varied, reference_of
from puma_plugin.experiments.contestants.methods import METHODS
from puma_plugin.experiments.settings.comparison_config import CompareConfig
from puma_plugin.experiments.settings.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from puma_plugin.experiments.settings.overrides import override


def grid(**values) -> CompareConfig:
    loss = LossConfig(arguments={"margin": 0.3, "ema": "per_class"})
    model = ModelConfig(backbone="embedded", adapter_dim=32)
    return CompareConfig(TrainConfig(DataConfig(kind="embedded"), model, loss), **values)


def packaged(name: str) -> CompareConfig:
    return parse(make_parser("compare", "", CompareConfig), CompareConfig, ["--config", packaged_config(name)])[0]


def test_arguments_are_varied_for_other_losses_too() -> None:
    config = grid(methods=["puma"], losses=["ArcFaceLoss", "CosFaceLoss"], combine={"loss.arguments.margin": [5, 50]})
    rows = expand(config)
    made = [override(config.train, row.settings).loss for row in rows]
    assert [(loss.name, loss.arguments) for loss in made] == [
        (name, {"margin": margin}) for margin in (5, 50) for name in ("ArcFaceLoss", "CosFaceLoss")
    ]
    ablated = grid(methods=["puma"], losses=["ArcFaceLoss"], ablate={"loss.arguments.margin": [5]})
    assert [override(config.train, row.settings).loss.arguments for row in expand(ablated)] == [{}, {"margin": 5}]


def test_every_method_with_every_loss() -> None:
    config = grid(methods=["frozen", "linear", "puma"], losses=["CurricularFaceLoss", "TripletMarginLoss"])
    rows = expand(config)
    assert [row.label for row in rows] == [
        "Frozen features",  # no loss, so once
        "Linear head, CurricularFace",
        "Linear head, TripletMargin",
        "PUMA, CurricularFace",
        "PUMA, TripletMargin",
    ]
    assert [row.key for row in rows] == [
        "frozen",
        "linear_CurricularFace",
        "linear_TripletMargin",
        "puma_CurricularFace",
        "puma_TripletMargin",
    ]
    common, other = (override(config.train, row.settings).loss for row in rows[3:])
    assert common == config.train.loss
    # Another loss does not take the common one's arguments.
    assert (other.name, other.arguments) == ("TripletMarginLoss", {})
    assert reference_of(config) == "frozen"


def test_combinations_and_ablations() -> None:
    config = grid(
        combine={"model.drop": [0.0, 0.5], "global_batch_size": [32, 64]},
        ablate={"model.adapter_dim": [8, 32], "loss.arguments.ema": ["global"], "model.blocks": [[0, 1], []]},
    )
    rows = expand(config)
    # 4 combinations, each with 4 ablations: the width of 32 is the row's own. Without adapters there is no drop, so
    # prompts only are there once per batch size.
    assert len(rows) == len({row.key for row in rows}) == 4 * 5 - 2
    first = rows[0]
    assert first.label == "PUMA, model.drop = 0, global_batch_size = 32"
    assert first.key == "puma_model.drop-0_global_batch_size-32"
    for row in rows[1:5]:
        assert row.rate_key == first.key
        before, after = (override(config.train, one.settings) for one in (first, row))
        changed = [
            (part, name)
            for part in ("model", "loss")
            for name, value in vars(getattr(after, part)).items()
            if value != getattr(getattr(before, part), name)
        ]
        assert len(changed) == 1
    assert override(config.train, rows[2].settings).loss.arguments == {"margin": 0.3, "ema": "global"}


def test_no_row_for_what_changes_nothing() -> None:
    config = grid(
        methods=["frozen", "full", "adaptformer", "puma"],
        combine={"model.drop": [0.0, 0.5], "global_batch_size": [32]},
        ablate={"model.adapter_dim": [8], "optimizer.lr": [1e-3], "data.test_fraction": [0.4]},
        reference="full",
    )
    assert not_varied(config) == {
        "frozen": ["model.drop", "global_batch_size", "model.adapter_dim", "optimizer.lr"],
        "full": ["model.drop", "model.adapter_dim"],
        "adaptformer": ["model.drop"],
        "puma": [],
    }
    assert [row.key for row in expand(config)] == [
        "frozen",
        "frozen_data.test_fraction-0.4",
        "full_global_batch_size-32",
        "full_global_batch_size-32_optimizer.lr-0.001",
        "full_global_batch_size-32_data.test_fraction-0.4",
        *(
            f"adaptformer_global_batch_size-32{tail}"
            for tail in ("", "_model.adapter_dim-8", "_optimizer.lr-0.001", "_data.test_fraction-0.4")
        ),
        *(
            f"puma_model.drop-{drop}_global_batch_size-32{tail}"
            for drop in ("0", "0.5")
            for tail in ("", "_model.adapter_dim-8", "_optimizer.lr-0.001", "_data.test_fraction-0.4")
        ),
    ]
    assert reference_of(config) == "full_global_batch_size-32"


def test_settings_that_matter_with_certain_values_of_others() -> None:
    """Without a pool there is no prompt whose length could be varied."""
    config = grid(combine={"model.pool_size": [0, 8], "model.prompt_length": [1, 4]})
    assert not_varied(config) == {"puma": []}
    assert [row.key for row in expand(config)] == [
        "puma_model.pool_size-0",
        "puma_model.pool_size-8_model.prompt_length-1",
        "puma_model.pool_size-8_model.prompt_length-4",
    ]


@pytest.mark.parametrize(
    "values",
    [
        # PUMA's adapters without drop and without a pool, which has three names.
        {"methods": ["adapters", "adaptformer"]},
        {"methods": ["puma", "adapters"], "combine": {"model.drop": [0.5, 0.0], "model.pool_size": [8, 0]}},
        {"methods": ["adaptformer", "puma"], "combine": {"model.drop": [0.0], "model.pool_size": [0]}},
        # All rates are tried for both.
        {"methods": ["adapters", "adaptformer"], "grid": [0.5, 1.0]},
    ],
)
def test_one_run_under_two_names(values: dict) -> None:
    names = " and ".join(rf"{name}\S* \(.*\)" for name in values["methods"])
    with pytest.raises(ValueError, match=rf"the rows {names} would be the same run, .*; leave one of them out"):
        expand(grid(**values))


def test_what_differs_in_a_setting_that_is_looked_at_is_no_run_twice() -> None:
    assert len(expand(grid(methods=["adapters", "adaptformer", "puma"], combine={"model.drop": [0.25]}))) == 3
    # Of the drop that was ablated there is a row already, unless that takes another rate.
    ablated = {"methods": ["puma"], "combine": {"model.drop": [0.5, 0.0]}, "ablate": {"model.drop": [0.0]}}
    assert [row.key for row in expand(grid(**ablated))] == ["puma_model.drop-0.5", "puma_model.drop-0"]
    assert len(expand(grid(**ablated, grid=[0.5, 1.0]))) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"methods": ["full", "lora"], "ablate": {"model.drop": [0.0]}},
            "model.drop is to be varied, but changes nothing for full, lora",
        ),
        ({"methods": ["magic"]}, "methods holds 'magic'"),
        ({"methods": ["puma", "puma"]}, "give each once"),
        ({"methods": []}, "methods is empty"),
        ({"reference": "full"}, "reference is 'full'"),
        ({"combine": {"model.method": ["puma"]}}, "model.method is no setting to vary here"),
        ({"ablate": {"model.speed": [1]}}, "there is no setting 'model.speed'"),
        ({"ablate": {"model.drop": [1.5]}}, "model.drop is 1.5"),
        ({"ablate": {"model.drop": [0.25, 0.25]}}, "two rows would share the file name 'puma_model.drop-0.25'"),
        ({"ablate": {"model.trainable_scale": ["often"]}}, "PUMA, model.trainable_scale = often"),
    ],
)
def test_refusals_before_any_run(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        expand(grid(**values))


def test_rates_need_classes_to_judge_by() -> None:
    folders = TrainConfig(DataConfig(folders={"a": "/a"}, validation_fraction=0.0))
    with pytest.raises(ValueError, match="no training class is held out"):
        CompareConfig(folders, grid=[0.5, 1.0])
    shuffled = TrainConfig(DataConfig(folders={"a": "/a"}, shuffle_classes=True))
    with pytest.raises(ValueError, match="classes to tune on would be test classes"):
        CompareConfig(shuffled, grid=[0.5, 1.0])


def test_data_seeds_have_to_change_the_images() -> None:
    folders = DataConfig(folders={"a": "/a"}, validation_fraction=0.0)
    with pytest.raises(ValueError, match="all would be the same images"):
        CompareConfig(TrainConfig(folders), data_seeds=[0, 1])
    CompareConfig(TrainConfig(replace(folders, shots=4)), data_seeds=[0, 1])
    CompareConfig(TrainConfig(folders), data_seeds=[0, 1], combine={"data.shots": [1, 2]})


def test_packaged_comparison_has_every_contestant() -> None:
    config = packaged("compare")
    assert {row.settings["model.method"] for row in expand(config)} == {
        "frozen", "linear", "full", "separate", "lora", "vpt_shallow", "vpt_deep", "adaptformer", "puma",
    }  # fmt: skip
    assert reference_of(config) == "puma"


def test_packaged_ablations_change_one_setting_each() -> None:
    rows = expand(packaged("ablations"))
    base = set(METHODS["puma"].settings)
    changed = [next(iter(set(row.settings) - base)) for row in rows[1:]]
    assert {
        "model.drop", "model.adapter_dim", "model.pool_size", "model.prompt_length", "model.blocks", "sampling",
        "loss.arguments.ema",
    } <= set(changed)  # fmt: skip
    assert all(len(set(row.settings) - base) == 1 for row in rows[1:])
