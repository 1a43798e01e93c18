"""`puma bench`: the benchmarks of the source folder; an installed wheel does not contain them."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import puma_plugin
from puma_plugin.utils.paths import home_path

ENTRY = Path("benchmarks") / "run.py"


def find_checkout(start: Path) -> Path:
    """The source folder with the benchmarks: where this package runs from, or around ``start``.

    Raises:
        FileNotFoundError: neither is a checkout of puma_plugin.
    """
    candidates = [Path(puma_plugin.__file__).resolve().parents[1], start, *start.parents]
    for folder in candidates:
        if (folder / ENTRY).is_file() and (folder / "puma_plugin" / "__init__.py").is_file():
            return folder
    raise FileNotFoundError(
        f"the benchmarks are not part of an installed package, and neither {candidates[0]} nor {start} is a checkout "
        "of puma_plugin's repository (a folder with benchmarks/run.py). Clone the repository, install it with "
        "`pip install -e '.[dev]'`, and run `puma bench` in its folder"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks; `puma bench --help` shows their options (suites, --quick, --device, --out)."""
    folder = find_checkout(Path.cwd())
    # The benchmarks run in their own folder; a relative --out means the caller's.
    parser = argparse.ArgumentParser(prog="puma bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=home_path)
    given, rest = parser.parse_known_args(list(arguments))
    out = [] if given.out is None else ["--out", str(given.out.resolve())]
    return subprocess.run([sys.executable, "-m", "benchmarks.run", *rest, *out], cwd=folder, check=False).returncode
