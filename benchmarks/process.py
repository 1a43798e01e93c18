"""A measurement in a process of its own, and what memory that process takes."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def run_apart(
    title: str, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON in the last line that ``python -m module arguments`` prints.

    Raises:
        RuntimeError: the process failed; the message is ``title`` and its last line.
    """
    command = [sys.executable, "-m", module, *arguments]
    folder = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"{title}: {last}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measurable() -> bool:
    """Whether the system tells a process's peak memory and lets it be reset (Linux does)."""
    return RESET.exists() and STATUS.exists()


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the start or the last reset."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def reset_peak() -> None:
    """Let VmHWM begin anew."""
    RESET.write_text("5", encoding="ascii")
