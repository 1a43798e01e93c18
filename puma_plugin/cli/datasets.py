"""`puma datasets`: look over image datasets before they are trained on."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import NoReturn

_DESCRIPTION = "Looks over the eight datasets of the unified benchmark, and draws few-shot splits of them."
_VERIFY = (
    "Compares the datasets in a folder with what is published: classes and images of every split, missing and surplus "
    "files and, on request, files that cannot be decoded. Exit code 1 if a run would fail."
)
_FEW_SHOT = (
    "Writes a JSON file of relative paths for every number of shots. The same seed gives the same files. Of your own "
    "images `puma train --data.shots N --data.seed S` draws in the same way, without a file."
)


class _Parser(ArgumentParser):
    """Mistakes become ValueError, which the command line reports in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="puma datasets", description=_DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|verify|few-shot")

    listing = actions.add_parser("list", help="the datasets: counts, where to get them, how to lay them out")
    listing.set_defaults(run=_list)

    verify = actions.add_parser("verify", help="what is there, against what is published", description=_VERIFY)
    verify.add_argument("root", help="the folder that holds the datasets' folders; with --own also a manifest")
    verify.add_argument("--datasets", nargs="+", metavar="NAME", help="these must be there (default: whichever are)")
    verify.add_argument("--own", action="store_true", help="each subfolder of root is a distribution of your own")
    verify.add_argument("--min-images", type=int, help="with --own: images that each class must have (default: 2)")
    verify.add_argument(
        "--small-classes", choices=["raise", "skip"], help="with --own: skip classes with fewer (default: raise)"
    )
    verify.add_argument("--image-root", metavar="DIR", help="with --own and a manifest: what its paths are relative to")
    verify.add_argument("--open-images", action="store_true", help="decode every image")
    verify.add_argument("--workers", type=int, help="threads that decode (default: one per processor)")
    verify.add_argument(
        "--report",
        type=os.path.expanduser,
        metavar="FILE",
        help="write everything as JSON too, to be given as known_bad",
    )
    verify.set_defaults(run=_verify)

    few_shot = actions.add_parser("few-shot", help="draw few-shot training sets", description=_FEW_SHOT)
    few_shot.add_argument("root", help="the folder that holds the datasets' folders")
    few_shot.add_argument(
        "--out", type=os.path.expanduser, required=True, help="folder for the files, few_shot_<shots>.json"
    )
    few_shot.add_argument("--shots", nargs="+", type=int, help="images per class (default: 1 2 4 8 16)")
    few_shot.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    few_shot.add_argument("--datasets", nargs="+", metavar="NAME", help="which (default: all eight)")
    # As a training takes them, also by the names there, which the messages of the datasets advise.
    few_shot.add_argument(
        "--bad-images",
        "--data.bad_images",
        dest="bad_images",
        choices=["raise", "skip"],
        default="raise",
        help="skip: draw only from images that can be read (default: raise)",
    )
    few_shot.add_argument(
        "--known-bad",
        "--data.known_bad",
        dest="known_bad",
        metavar="FILE",
        help="with --bad-images skip: a report of verify --open-images, so that no image need be opened",
    )
    for command in (verify, few_shot):
        command.add_argument(
            "--check-counts",
            "--data.check_counts",
            dest="check_counts",
            choices=["true", "false"],
            default="true",
            help="of the classes, against the published ones; false: for a reduced copy (default: true)",
        )
    few_shot.set_defaults(run=_few_shot)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0; 1 if ``verify`` found something that would make a run fail.

    Raises:
        ValueError: wrong options, an unknown dataset, a folder that is none; for ``few-shot`` an unusable dataset.
    """
    options = _parser().parse_args(list(arguments))
    return int(options.run(options))


def _list(options: Namespace) -> int:
    from puma_plugin.datasets.catalogue import CATALOGUE

    for facts in CATALOGUE.values():
        splits = "; ".join(
            f"{split} {counts.classes:,} classes" + (f", {counts.images:,} images" if counts.images else "")
            for split, counts in facts.splits.items()
        )
        print(f"{facts.name}: {facts.title}\n  {splits}; {facts.total:,} images in all\n{facts.how_to_get()}\n")
    return 0


def _verify(options: Namespace) -> int:
    from puma_plugin.datasets.verify import verify_datasets, verify_own
    from puma_plugin.utils import require_writable, write_json

    def progress(name: str, done: int, total: int) -> None:
        print(f"\r{name}: {done:,} of {total:,} images opened ", end="", file=sys.stderr, flush=True)

    shown = progress if options.open_images and sys.stderr.isatty() else None
    how = {"open_images": options.open_images, "workers": options.workers, "progress": shown}
    if options.own and options.datasets:
        raise ValueError("--datasets names datasets of the benchmark, --own looks at others; give one of the two")
    own = {"min_images": options.min_images, "small_classes": options.small_classes, "root": options.image_root}
    own = {name: value for name, value in own.items() if value is not None}
    if own and not options.own:
        raise ValueError(
            "--min-images, --small-classes and --image-root go with --own; datasets of the benchmark have rules of "
            "their own"
        )
    check_counts = options.check_counts == "true"
    if options.own and not check_counts:
        raise ValueError(
            "--check-counts is for datasets of the benchmark; of your own no counts are published, leave it out"
        )
    if options.report:
        require_writable(options.report, "--report")
    if options.own:
        report = verify_own(options.root, **how, **own)
    else:
        report = verify_datasets(options.root, options.datasets, **how, check_counts=check_counts)
    if shown is not None:
        print(file=sys.stderr)
    print(report.text())
    if not options.own and not any(report.ok for report in report.datasets):
        print(f"Distributions of your own are looked over with: puma datasets verify --own {options.root}")
    if options.report:
        write_json(options.report, report.to_dict())
        print(f"report in {options.report}")
    return 0 if report.ok else 1


def _few_shot(options: Namespace) -> int:
    from puma_plugin.datasets.benchmark import load_benchmark
    from puma_plugin.datasets.few_shot import SHOTS, draw_few_shot, write_few_shot

    datasets = load_benchmark(
        options.root,
        "train",
        options.datasets,
        bad_images=options.bad_images,
        known_bad=options.known_bad,
        check_counts=options.check_counts == "true",
    )
    for shots in options.shots or SHOTS:
        split = draw_few_shot(datasets, shots, options.seed)
        path = os.path.join(options.out, f"few_shot_{shots}.json")
        write_few_shot(path, split)
        images = sum(len(keys) for classes in split.images.values() for keys in classes.values())
        classes = sum(map(len, split.images.values()))
        print(f"{path}: {images:,} images of {classes:,} classes in {len(split.images)} datasets, seed {options.seed}")
    return 0
