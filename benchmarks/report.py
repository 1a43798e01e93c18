"""Tables and plots of a result file, and the comparison of two: ``python -m benchmarks.report COMMAND``.

tables FILE             markdown, to standard output
plots FILE [--out DIR]  SVG files, into plots/ next to the file: those that are shown of this machine
goals FILE              exit code 1 if a measured goal was missed
compare OLD NEW         what is outside noise; exit code 1 if ours got slower
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.compare import compare, comparison_text
from benchmarks.reporting.goals import judge
from benchmarks.reporting.results import WITH_OURS, load_results
from benchmarks.reporting.tables import goals_table, report_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    given = _parser().parse_args(arguments)
    try:
        code = int(given.run(given))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # its reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        print(f"python -m benchmarks.report: error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"python -m benchmarks.report: error: {error}; install it with pip install {error.name}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run in (("tables", _tables), ("plots", _plots), ("goals", _goals)):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.set_defaults(run=run)
        if name == "plots":
            command.add_argument("--out", type=Path, help="folder; default: plots/ next to the file")
    command = commands.add_parser("compare")
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    command.add_argument("--all", action="store_true", help="every row, not only those outside noise")
    command.add_argument("--other-machine", action="store_true", help="compare files of different machines or packages")
    command.set_defaults(run=_compare)
    return parser


def _tables(given: argparse.Namespace) -> int:
    print(report_text(load_results(given.file)))
    return 0


def _plots(given: argparse.Namespace) -> int:
    from benchmarks.reporting.plots import write_plots  # matplotlib is slow to import

    for path in write_plots(load_results(given.file), given.out or given.file.parent / "plots"):
        print(path)
    return 0


def _goals(given: argparse.Namespace) -> int:
    verdicts = judge(load_results(given.file))
    print(goals_table(verdicts))
    return int(any(verdict.reached is False for verdict in verdicts))


def _compare(given: argparse.Namespace) -> int:
    comparison = compare(load_results(given.old), load_results(given.new), other_machine=given.other_machine)
    print(comparison_text(comparison, everything=given.all))
    return int(any(entry.verdict == "slower" and entry.new.contestant in WITH_OURS for entry in comparison.changes))


if __name__ == "__main__":
    sys.exit(main())
