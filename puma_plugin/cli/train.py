"""`puma train`: one embedding model on your datasets."""

import shlex
import sys
from collections.abc import Sequence

from puma_plugin.cli.parsing import make_parser, parse
from puma_plugin.experiments.settings.config import TrainConfig
from puma_plugin.utils.launcher import is_first_process, require_one_process

_DESCRIPTION = (
    "Trains one embedding model on several image datasets and evaluates it on their test classes. Writes checkpoint.pt "
    "(everything needed to go on), model.safetensors (the trained weights), metrics.json and report.html. Example "
    "configurations come with the package: puma_plugin/configs/image_folders.yaml, paper.yaml, few_shot.yaml. Several "
    "GPUs: torchrun --nproc-per-node=N -m puma_plugin train ...; the batch is that of all together, and the result the "
    "same for any number. Ctrl-C and SIGTERM stop it; the same command with --resume goes on from the last checkpoint."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = make_parser("train", _DESCRIPTION, TrainConfig)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        choices=["yes", "auto"],
        help="go on from the checkpoint in --out; --resume auto: if there is one, else begin (for schedulers and "
        "torchrun --max-restarts, which give the same command again)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, do three steps on random images, and print counts of weights, memory, time per step "
        "and an estimate for the whole run; writes nothing, and the paper's benchmark need not be there",
    )
    parser.add_argument("--classes", type=int, help="--dry-run: training classes, in place of counting the data")
    parser.add_argument("--images", type=int, help="--dry-run: training images, in place of counting the data")
    config, options = parse(parser, TrainConfig, arguments)
    if not options.dry_run and (options.classes is not None or options.images is not None):
        raise ValueError("--classes and --images are for --dry-run; give it too, or leave them out")
    if options.dry_run:
        require_one_process("puma train --dry-run", "a dry run is of one")
    from puma_plugin.experiments.running.display import TrainingConsole

    console = TrainingConsole()
    if options.dry_run:
        from puma_plugin.experiments.running.dry_run import dry_run, training_sizes
        from puma_plugin.experiments.running.early_checks import check_settings

        check_settings(config)
        dry_run(config, *training_sizes(config.data, options.classes, options.images), console)
        return 0
    from puma_plugin.experiments.running.agreement import can_resume
    from puma_plugin.experiments.running.session import train
    from puma_plugin.trainers import NonFiniteLossError

    try:
        train(config, options.resume or "no", shlex.join(["puma", "train", *arguments]), console)
    except NonFiniteLossError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        if not can_resume(config):
            raise
        if is_first_process():
            again = "the same command" if options.resume else "the same command with --resume"
            print(f"\ninterrupted; a checkpoint is in {config.out}, {again} goes on from there", file=sys.stderr)
        return 130
    return 0
