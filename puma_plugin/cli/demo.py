"""`puma demo`: the main job on images and weights that come with the package."""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from puma_plugin.cli.parsing import make_parser, packaged_config, parse
from puma_plugin.experiments.running.stopping import ended_by_signals
from puma_plugin.experiments.settings.comparison_config import DemoConfig

_DESCRIPTION = (
    "Generates eight image distributions, trains PUMA on all of them jointly within minutes, compares it with frozen "
    "features and a linear head on the same budget, and writes metrics.json, the trained weights and report.html. "
    "Ctrl-C and SIGTERM stop it; the same command goes on where it stopped."
)


@ended_by_signals()
def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = make_parser("demo", _DESCRIPTION, DemoConfig, [packaged_config("demo")])
    parser.add_argument(
        "--all",
        action="store_true",
        help="also full fine-tuning, one model per dataset and adapters alone; every data seed with every training "
        "seed; learning rates chosen anew; about an hour and a half on two cores",
    )
    parser.add_argument("--seed", type=int, default=None, help="training seed of the short demo (default: the first)")
    parser.add_argument(
        "--fresh", action="store_true", help="remove what earlier runs finished of these rows, with any settings, first"
    )
    config, options = parse(parser, DemoConfig, arguments)
    if options.seed is not None:
        if options.all:
            raise ValueError("--seed is for the short demo; with --all give --seeds '[0, 1, 2]'")
        config = replace(config, seeds=[options.seed])
    command = shlex.join(["puma", "demo", *arguments])
    return run(config, everything=options.all, fresh=options.fresh, command=command)


def run(config: DemoConfig, everything: bool, fresh: bool, command: str) -> int:
    """Run the comparison and write its files; the exit code."""
    from rich.console import Console

    from puma_plugin.experiments.comparing.comparison import Comparison
    from puma_plugin.experiments.comparing.publish import Finished, publish
    from puma_plugin.experiments.comparing.recorded import recorded_rates
    from puma_plugin.experiments.contestants.methods import DEMO_KEYS, MAIN_KEYS, METHODS, named
    from puma_plugin.experiments.reporting.terminal import say, show_table

    start = time.monotonic()
    console = Console()
    methods = named(MAIN_KEYS if everything else DEMO_KEYS)
    if unknown := sorted(set(config.rates) - set(METHODS)):
        raise ValueError(f"rates holds {unknown[0]!r}; give some of {', '.join(METHODS)}")
    rates = {**{method.key: 1.0 for method in methods}, **recorded_rates(), **config.rates}
    seeds = (config.data_seeds, config.seeds) if everything else (config.data_seeds[:1], config.seeds[:1])
    try:
        outcome = Comparison(config, methods, console).run(
            rates, *seeds, try_rates=everything, keep_models=True, fresh=fresh
        )
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; finished parts are in {config.out}, the same command goes on from there", file=sys.stderr
        )
        return 130
    with console.status("writing the report"):
        report, metrics = publish(
            Finished(config, methods, outcome.jobs, outcome.records, outcome.rates, command, time.monotonic() - start),
            console,
        )
    show_table(console, metrics)
    say(console, f"{report}  ({time.monotonic() - start:.0f} s)")
    return 0
