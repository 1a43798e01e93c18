"""What the command line refuses, in words: the setting, what came, what is accepted."""

import re
from pathlib import Path

import pytest

from puma_plugin.cli.parsing import make_parser, parse
from puma_plugin.experiments.settings.config import TrainConfig


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.metod", "puma"],
            "unrecognized arguments: --model.metod puma; for --model.metod perhaps --model.method",
        ),
        (["--epoch=3"], "unrecognized arguments: --epoch=3; for --epoch perhaps --epochs"),
        (["--nothing-like-it"], "unrecognized arguments: --nothing-like-it (see"),
        (
            ["--data.names", "lamp"],
            """data.names is 'lamp'; give a list of texts, numbers in quotes ('["2019", "birds"]') or null, as""",
        ),
        (["--model.method", "pumma"], "model.method is 'pumma'; give one of 'puma', 'adapters', "),
        (["--epochs", "x"], "epochs is 'x'; give a whole number"),
        (["--data.shots", "a"], "data.shots is 'a'; give a whole number or null"),
        (["--optimizer.clip", "a"], "optimizer.clip is 'a'; give a number or null"),
        (["--data.flip", "3"], "data.flip is '3'; give true or false"),
        (["--config", "compare"], "is not accepted; the file looks like one for `puma compare`"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"\(see `puma train --help`\)") as caught:
        parse(make_parser("train", "", TrainConfig), TrainConfig, ["--data.kind", "embedded", *arguments])
    assert message in str(caught.value)


def test_a_file_is_refused_as_the_command_line_is(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {kind: embedded, shots: many}")
    with pytest.raises(ValueError, match=r"data\.shots is 'many'; give a whole number or null"):
        parse(make_parser("train", "", TrainConfig), TrainConfig, ["--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\noptimizer:\n  # lr: 1e-3", "optimizer is empty; put its settings below it, indented, or leave it"),
        ("data: [1]", "data is [1]; put its settings below it"),
        ("data: {kind: embedded}\nepochs:", "epochs is empty (null); give a value, or leave it out"),
        ("data: {kind: embedded, crop_fraction: }", "data.crop_fraction is empty (null); give a value"),
    ],
)
def test_nothing_behind_a_colon(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(make_parser("train", "", TrainConfig), TrainConfig, ["--config", str(tmp_path / "run.yaml")])


def test_null_is_a_value_of_some_settings_and_years_are_names(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {folders: {2019: a, birds: b}, shots: }\nthreads:\n")
    config, _ = parse(make_parser("train", "", TrainConfig), TrainConfig, ["--config", str(tmp_path / "run.yaml")])
    assert (config.threads, config.data.shots, config.data.folders) == (None, None, {"2019": "a", "birds": "b"})


def test_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("out: caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match="the configuration file is no UTF-8"):
        parse(make_parser("train", "", TrainConfig), TrainConfig, ["--config", str(tmp_path / "run.yaml")])
