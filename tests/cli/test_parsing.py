"""What the command line refuses, in words: the setting, what came, what is accepted."""

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
        (["--data.names", "lamp"], "data.names is 'lamp'; give list[str] or null, as in --data.names '[lamp]'"),
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
