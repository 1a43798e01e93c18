"""Worker processes: results, progress, failures, one thread each. Workers import their task, hence the script."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import puma_plugin
from puma_plugin.experiments.running.pool import Event, Progress, run_tasks

SCRIPT = """
import json, multiprocessing, os, sys, time
from dataclasses import dataclass
from puma_plugin.experiments.running.pool import run_tasks

@dataclass(frozen=True)
class Square:
    number: int

    @property
    def key(self):
        return f"square-{self.number}"

def square(task, progress):
    progress({"step": task.number})
    if task.number == 13:
        raise ValueError("unlucky")
    if task.number == 7:
        child = multiprocessing.get_context("fork").Process(target=os.getpid)
        child.start()
        child.join()
    if task.number == 99:
        os._exit(7)
    time.sleep(0.2)
    return [task.number**2, os.getpid(), os.environ.get("OMP_NUM_THREADS")]

if __name__ == "__main__":
    events = []
    before = dict(os.environ)
    results = run_tasks([Square(int(n)) for n in sys.argv[1:]], square, 2, events.append)
    kinds = [(event.kind, event.key) for event in events]
    print(json.dumps({"results": results, "kinds": kinds, "own": os.getpid(), "kept": before == dict(os.environ)}))
"""


def run_script(folder: Path, *numbers: int) -> subprocess.CompletedProcess[str]:
    path = folder / "squares.py"
    path.write_text(SCRIPT)
    command = [sys.executable, str(path), *map(str, numbers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(puma_plugin.__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_two_processes_share_the_tasks(tmp_path: Path) -> None:
    finished = run_script(tmp_path, 1, 2, 3, 4, 5, 6)
    assert finished.returncode == 0, finished.stderr
    content: dict[str, Any] = json.loads(finished.stdout)
    results = content["results"]
    assert {key: value[0] for key, value in results.items()} == {f"square-{n}": n * n for n in range(1, 7)}
    processes = {value[1] for value in results.values()}
    assert len(processes) == 2
    assert content["own"] not in processes
    assert {value[2] for value in results.values()} == {"1"}
    assert content["kept"], "the parent's environment changed"
    for number in range(1, 7):
        kinds = [kind for kind, key in content["kinds"] if key == f"square-{number}"]
        assert kinds == ["start", "progress", "done"]


def test_a_task_may_have_processes_of_its_own(tmp_path: Path) -> None:
    """As a data loader with workers has."""
    finished = run_script(tmp_path, 7)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(("number", "message"), [(13, "square-13 failed"), (99, "exit code 7")])
def test_a_failing_or_dying_task_ends_the_pool(tmp_path: Path, number: int, message: str) -> None:
    finished = run_script(tmp_path, 1, number)
    assert finished.returncode == 1
    assert message in finished.stderr


@dataclass(frozen=True)
class Task:
    number: int

    @property
    def key(self) -> str:
        return f"task-{self.number}"


def test_without_processes() -> None:
    def double(task: Task, progress: Progress) -> int:
        progress({"step": 1})
        return 2 * task.number

    events: list[Event] = []
    assert run_tasks([Task(2), Task(3)], double, 0, events.append) == {"task-2": 4, "task-3": 6}
    assert [event.kind for event in events] == ["start", "progress", "done"] * 2
