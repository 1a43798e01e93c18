"""`puma compare`: methods, losses and settings against each other, from one file."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from puma_plugin.cli.parsing import find_config, make_parser, parse
from puma_plugin.experiments.running.stopping import ended_by_signals
from puma_plugin.experiments.settings.comparison_config import CompareConfig
from puma_plugin.experiments.settings.results import JOBS
from puma_plugin.utils import require_writable

_DESCRIPTION = (
    "Trains and evaluates every row of a grid (methods, losses, any other settings; several seeds) on the configured "
    "datasets, and writes table.md, metrics.json, report.html and pareto.svg into --out. CONFIG is a YAML file, or "
    "`compare` (the methods) or `ablations`, which come with the package and run on its embedded images. Ctrl-C and "
    "SIGTERM stop it; the same command goes on where it stopped."
)


@ended_by_signals()
def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = make_parser("compare", _DESCRIPTION, CompareConfig)
    parser.usage = "puma compare CONFIG [options]"
    parser.add_argument(
        "--fresh", action="store_true", help="remove what earlier runs finished of these rows, with any settings, first"
    )
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given = ["--config", find_config(given[0]), *given[1:]]
    elif not any(argument.partition("=")[0] in ("--config", "--help", "-h", "--print_config") for argument in given):
        raise ValueError("CONFIG is missing; give a YAML file, or compare or ablations, which come with the package")
    config, options = parse(parser, CompareConfig, given)
    from rich.console import Console

    from puma_plugin.experiments.comparing.compare import compare
    from puma_plugin.experiments.reporting.terminal import say, show_table

    console = Console()
    require_writable(config.out, "out", is_folder=True)
    try:
        metrics = compare(config, shlex.join(["puma", "compare", *arguments]), console, options.fresh)
    except KeyboardInterrupt:
        if not any((Path(config.out) / JOBS).glob("*")):
            raise
        print(f"\ninterrupted; finished runs are in {config.out}, the same command goes on from there", file=sys.stderr)
        return 130
    show_table(console, metrics)
    say(console, f"results in {config.out}")
    return 0
