"""`puma evaluate`: a trained model on the test classes of any datasets."""

import shlex
from collections.abc import Sequence

from puma_plugin.cli.parsing import make_parser, parse
from puma_plugin.experiments.settings.config import SETTINGS, EvaluateConfig
from puma_plugin.utils.paths import home_path

_DESCRIPTION = (
    "Evaluates model.safetensors of a training run on the test classes of the configured datasets, which need not be "
    "those of the training. Writes metrics.json and report.html into --out. Intervals in metrics.json are bootstrapped "
    "over the test classes; --baseline prints which differences from another evaluation are outside them. "
    "Several GPUs: torchrun --nproc-per-node=N -m puma_plugin evaluate ...; the figures are those of one process."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = make_parser("evaluate", _DESCRIPTION, EvaluateConfig)
    parser.add_argument(
        "--checkpoint",
        type=home_path,
        required=True,
        help="model.safetensors of a run, or its folder; without --config the run's own config.json holds, "
        "and --out is its folder",
    )
    parser.add_argument("--baseline", type=home_path, help="metrics.json of another evaluation, or its folder")
    config, options = parse(parser, EvaluateConfig, _with_settings_of_the_run(arguments))
    from rich.console import Console

    from puma_plugin.experiments.running.session import evaluate

    evaluate(config, options.checkpoint, shlex.join(["puma", "evaluate", *arguments]), Console(), options.baseline)
    return 0


def _with_settings_of_the_run(arguments: Sequence[str]) -> list[str]:
    """The arguments, and if they name no configuration, the one beside the checkpoint, and where that now lies."""
    given = list(arguments)
    if any(argument == "--config" or argument.startswith("--config=") for argument in given):
        return given
    for index, argument in enumerate(given):
        name, _, value = argument.partition("=")
        if name == "--checkpoint":
            checkpoint = home_path(value or "".join(given[index + 1 : index + 2]))
            folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
            if (folder / SETTINGS).is_file():
                return ["--config", str(folder / SETTINGS), "--out", str(folder), *given]
            if not checkpoint.exists():
                raise ValueError(f"--checkpoint is {checkpoint}, which does not exist; give the folder of a run")
    return given
