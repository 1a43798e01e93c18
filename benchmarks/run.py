"""``python -m benchmarks.run``: measure, write the result file, its tables (.md) and its plots (-plots/).

On the CPU the suites run twice, each time in a process of its own: with the C library's default allocator settings and
with raised thresholds, because these are read when a process starts.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.reporting import write_report
from benchmarks.settings import EFFORTS, SUBJECTS, SUITES, choose_device, malloc_environment
from puma_plugin.utils import write_json

ROOT = Path(__file__).resolve().parents[1]
SUITES_FOLDER = ROOT / "benchmarks" / "suites"
RESULTS = ROOT / "benchmarks" / "results"
BUSY = 0.5  # load per core
PATIENCE_S = 10  # for a measuring process that was told to end
NEEDED = {"pytest": "pytest", "pytest-benchmark": "pytest_benchmark"}  # package: module
# Of the result file; those of several processes are joined.
LISTS = ("benchmarks", "memory", "failures", "ceilings", "settings")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a contestant failed or disagreed, 2 on wrong arguments, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="puma bench", description=__doc__)
    parser.add_argument("--effort", choices=list(EFFORTS), default="full", help="default: full")
    parser.add_argument("--quick", action="store_const", const="quick", dest="effort", help="same as --effort quick")
    parser.add_argument(
        "--suites", nargs="+", choices=SUITES, default=list(SUITES), metavar="SUITE", help=", ".join(SUITES)
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--malloc", choices=["both", "default", "raised"], default="both", help="allocator thresholds; default: both"
    )
    parser.add_argument("--no-compiled", action="store_true", help="leave out the torch.compile contestants")
    parser.add_argument("--out", type=Path, help="folder for the results; default: benchmarks/results/<machine>")
    given = parser.parse_args(arguments)
    missing = [name for name, module in NEEDED.items() if find_spec(module) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} must be installed: pip install {' '.join(missing)}")
    require_compiled(parser)
    try:
        device = choose_device(given.device)
        if given.out is not None:  # now, not when everything has been measured
            given.out.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out must be a folder that can be written to, got {given.out}: {error.strerror}")
    warn_if_busy()
    warn_if_stale()
    settings = ["default"] if device == "cuda" else ["default", "raised"] if given.malloc == "both" else [given.malloc]

    codes, parts = [], []
    for setting in settings:
        print(f"== {device}, allocator thresholds: {setting}", flush=True)
        try:
            code, result = measure(given.suites, given.effort, device, setting, given.no_compiled)
        except KeyboardInterrupt:
            if not parts:
                print("interrupted; nothing was finished, and no result file is written", file=sys.stderr)
                return 130
            print(f"interrupted; what was finished before ({settings[0]} thresholds) is written", file=sys.stderr)
            codes.append(130)
            break
        codes.append(code)
        parts += [result] if result else []
    if not parts:
        print("nothing was measured; no result file is written", file=sys.stderr)
        return 1
    merged = merge(parts)
    from benchmarks.machine import machine_slug  # imports torch, which `--help` need not wait for

    folder = given.out or RESULTS / machine_slug(merged["machine_info"])
    path = free_path(folder, result_name(merged, given.effort))
    write_json(path, merged)
    print(write_report(path), f"result file: {path}", sep="\n")
    return 130 if 130 in codes else int(any(codes))


def require_compiled(parser: argparse.ArgumentParser) -> None:
    """Without there is nothing of our own to measure. Python sees the sources here, not what may be installed."""
    from puma_plugin.ops import loader  # imports torch, which `--help` need not wait for

    if not loader.CPU_LIBRARY.loaded:
        fix = f". To compile: {loader.REBUILD}" if loader.CPU_LIBRARY.can_be_compiled else ""
        parser.error(f"the operators are not loaded: {loader.CPU_LIBRARY.reason}{fix}")


def warn_if_busy() -> None:
    """Say so if other processes use this machine: the figures would be theirs as much as ours."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores:
        print(
            f"the machine is busy (load {load:.1f}, {cores} cores): figures will be unreliable. Best "
            "wait; OMP_WAIT_POLICY=passive at least keeps waiting threads from spinning",
            file=sys.stderr,
        )


def warn_if_stale() -> None:
    """Say so if sources of the operators were changed after these were compiled: the commit names other code then."""
    from benchmarks.machine import PACKAGE, SOURCES, changed_since_the_build  # imports torch

    changed = changed_since_the_build(PACKAGE, SOURCES)
    if changed:
        others = f" and {len(changed) - 1} other sources" if len(changed) > 1 else ""
        print(
            f"the compiled operators are older than {changed[0]}{others}: what is measured may be other code than the "
            "commit's. To rebuild: python setup.py build_ext --inplace, or pip install --no-build-isolation -e .",
            file=sys.stderr,
        )


def measure(
    suites: Sequence[str], effort: str, device: str, setting: str, no_compiled: bool
) -> tuple[int, dict[str, Any] | None]:
    """Run suites in one process with one allocator setting; its exit code and its result, None if there is none."""
    with tempfile.TemporaryDirectory(prefix="puma_bench_") as folder:
        path = Path(folder) / "result.json"
        # Each file holds the ceilings. They are a timing, too: without any, as in the memory suite, pytest-benchmark
        # writes no file.
        names = dict.fromkeys("subjects" if name in SUBJECTS else name for name in ("ceilings", *suites))
        files = [str(SUITES_FOLDER / f"bench_{name}.py") for name in names]
        options = [f"--subject={name}" for name in SUBJECTS if name in suites]
        options += [f"--effort={effort}", f"--bench-device={device}", *(["--no-compiled"] if no_compiled else [])]
        # One line per comparison (-s) and failures, nothing else.
        quiet = ["-q", "-s", "-rNfE", "--no-header", "--benchmark-quiet", "--continue-on-collection-errors"]
        plugins = ["-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *files, *options, *quiet, *plugins, f"--benchmark-json={path}"]
        # Strict: "ours" are the compiled operators or a failure, never the definition in plain PyTorch in their place.
        environment = {**malloc_environment(setting), "PUMA_STRICT": "1"}
        code = run_process(command, environment)
        return code, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_process(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Its exit code. Where this process is interrupted, that one and those that it started end first.

    Raises:
        KeyboardInterrupt: Ctrl-C, or a request to terminate.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # not SIGKILL: pytest ends what it has started
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def merge(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the results of several processes of one run."""
    from benchmarks.machine import commit_of_all  # imports torch, which `--help` need not wait for

    merged = dict(parts[0])
    commit = commit_of_all([part["machine_info"].get("commit") for part in parts])
    merged["machine_info"] = {**merged["machine_info"], "commit": commit}
    for name in LISTS:
        merged[name] = [entry for part in parts for entry in part[name]]
    return merged


def result_name(result: dict[str, Any], effort: str) -> str:
    """Date, commit and effort, as in ``2026-01-31-1530-0123abc-full``."""
    date = datetime.fromisoformat(result["datetime"]).astimezone(timezone.utc)
    commit = str(result["machine_info"].get("commit") or "unversioned")
    commit = commit[:7] + ("+" if "+" in commit else "")
    return f"{date:%Y-%m-%d-%H%M}-{commit}-{effort}"


def free_path(folder: Path, name: str) -> Path:
    """``folder/name.json``; with -2, -3 ... behind the name where a run of the same minute has written that."""
    path, number = folder / f"{name}.json", 2
    while path.exists():
        path, number = folder / f"{name}-{number}.json", number + 1
    return path


if __name__ == "__main__":
    sys.exit(main())
