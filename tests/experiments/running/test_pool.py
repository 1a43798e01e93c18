"""Worker processes: results, progress, failures, one thread each. Workers import their task, hence the script."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
    if task.number == 14:
        raise ValueError("first line\\n  second line")
    if task.number == 16:
        raise MemoryError
    if task.number == 15:
        sys.exit(0)
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


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (13, "TaskError: square-13 failed: ValueError: unlucky"),
        (14, "TaskError: square-14 failed: ValueError: first line\n  second line"),
        (16, "TaskError: square-16 failed: MemoryError\n"),
        (15, "TaskError: square-15 failed: it ended its process with exit code 0"),
        (99, "failed: its process ended with exit code 7"),  # perhaps before it could say what it was at
    ],
)
def test_a_failing_or_dying_task_ends_the_pool(tmp_path: Path, number: int, message: str) -> None:
    finished = run_script(tmp_path, 1, number)
    assert finished.returncode == 1
    assert message in finished.stderr


ENDLESS = """
import multiprocessing, os, signal, sys, time
from dataclasses import dataclass
from puma_plugin.experiments.running import pool
from puma_plugin.experiments.running.pool import run_tasks
from puma_plugin.experiments.running.stopping import ended_by_signals

pool._STEP = 1  # seconds; the workers import this, too

@dataclass(frozen=True)
class Endless:
    key: str
    load: str = ""

def work(task, progress):
    lock = multiprocessing.RLock()  # a semaphore, as tqdm makes one
    progress({"process": os.getpid()})
    while True:
        time.sleep(0.01)
        if task.key == "steps":
            progress({})

def show(event):
    if event.content and event.kind == "progress":
        print(event.content["process"], event.key, flush=True)

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP):  # which who started the tests may have ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # More tasks than a pipe holds: those that nobody takes any more must not be waited for.
    tasks = [Endless("steps"), Endless("no steps"), *(Endless(f"waits {number}", 50_000 * " ") for number in range(9))]
    try:
        with ended_by_signals():
            run_tasks(tasks, work, 2, show)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def start_endless(folder: Path) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """A pool that has begun its first tasks, and the ids of its workers by task."""
    (folder / "endless.py").write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, str(folder / "endless.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(puma_plugin.__file__).parents[1])},
    )
    assert process.stdout is not None
    lines = (process.stdout.readline().rstrip().partition(" ") for _ in range(2))
    return process, {key: int(number) for number, _, key in lines}


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
        # One that has ended and that nobody has looked after yet is still known.
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("how", "send"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill), (signal.SIGTERM, os.killpg), (signal.SIGHUP, os.killpg)],
)
def test_a_signal_ends_the_pool_and_leaves_nothing(
    how: signal.Signals, send: Callable[[int, int], None], tmp_path: Path
) -> None:
    """Sent to the process alone or to its workers too, once or twice, in the middle of steps or of one without end."""
    process, workers = start_endless(tmp_path)
    for _ in range(2):
        send(process.pid, how)
        time.sleep(0.1)
    said = process.communicate(timeout=60)
    assert said == ("", "")  # no word of semaphores that were left either
    assert process.returncode == 130
    assert not any(map(is_running, workers.values()))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Those that take steps, at the next one."""
    process, workers = start_endless(tmp_path)
    process.kill()
    deadline = time.monotonic() + 30
    while all(map(is_running, workers.values())) and time.monotonic() < deadline:
        time.sleep(0.05)
    running = list(filter(is_running, workers.values()))
    assert len(running) == 1
    os.kill(running[0], signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.parametrize("key", ["steps", "no steps"])
@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_worker_that_alone_is_ended_is_a_failure(how: signal.Signals, code: int, key: str, tmp_path: Path) -> None:
    """Also while the other one, with its steps, reports without a pause."""
    process, workers = start_endless(tmp_path)
    os.kill(workers[key], how)
    told = process.communicate(timeout=60)[1]
    assert f"{key} failed: its process ended with exit code {code} (out of memory, or killed)" in told
    assert process.returncode == 1
    assert not any(map(is_running, workers.values()))


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
