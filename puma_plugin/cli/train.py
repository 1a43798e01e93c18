"""`puma train`: one embedding model on your datasets."""

from collections.abc import Sequence

from puma_plugin.cli.parsing import make_parser, parse
from puma_plugin.experiments.config import TrainConfig

_DESCRIPTION = (
    "Trains one embedding model on several image datasets and evaluates it on their test classes. Writes checkpoint.pt "
    "(everything needed to go on), model.safetensors (the trained weights), metrics.json and report.html. Example "
    "configurations come with the package: puma_plugin/configs/image_folders.yaml, paper.yaml, few_shot.yaml."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = make_parser("train", _DESCRIPTION, TrainConfig)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    config, options = parse(parser, TrainConfig, arguments)
    from rich.console import Console

    from puma_plugin.experiments.session import train

    console = Console()
    train(config, options.resume, " ".join(["puma", "train", *arguments]), console)
    console.print(f"results in {config.out}", highlight=False)
    return 0
