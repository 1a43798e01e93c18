"""A small pool of single-threaded worker processes that stops cleanly on Ctrl-C and reports progress."""

import multiprocessing
import os
import queue
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Event:
    """Something a worker reports: "start" (with its process id), "progress", "done" or "failed" (the traceback)."""

    kind: str
    key: str
    content: Any = None


class TaskError(ChildProcessError):
    """A task failed, or the process that ran it died.

    Attributes:
        key: the task's, or None where a process died before it said what it was at.
        log: the traceback, empty for a process that died.
    """

    def __init__(self, message: str, key: str | None, log: str = "") -> None:
        super().__init__(message)
        self.key, self.log = key, log

    @classmethod
    def of(cls, key: str, log: str) -> "TaskError":
        """From the traceback of what the task raised."""
        # The last line is the exception's, with its module before the class.
        cause = re.sub(r"^(?:[A-Za-z_]\w*\.)+(?=[A-Z])", "", log.strip().splitlines()[-1])
        return cls(f"{key} failed: {cause}", key, log)


def _work(run: Callable[[Any, Progress], Any], tasks: Any, events: Any) -> None:
    # Ctrl-C reaches the whole process group; only the parent acts on it, by ending the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            task = tasks.get(timeout=2.0)
        except queue.Empty:
            continue
        if task is None:
            return
        key = task.key

        def progress(content: dict[str, Any], key: str = key) -> None:
            if parent is not None and not parent.is_alive():
                os._exit(1)  # the parent was killed: nobody waits for the result
            events.put(Event("progress", key, content))

        events.put(Event("start", key, os.getpid()))
        try:
            events.put(Event("done", key, run(task, progress)))
        except Exception:
            events.put(Event("failed", key, traceback.format_exc()))


def _forward(on_event: Callable[[Event], None], key: str, content: dict[str, Any]) -> None:
    on_event(Event("progress", key, content))


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C from their first moment on, and not only once they have imported all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_tasks(
    tasks: Sequence[Any], run: Callable[[Any, Progress], Any], workers: int, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    """Run every task and return what `run` returned, by the task's key.

    Args:
        tasks: picklable objects with a `key`; they start in the order given.
        run: importable function of (task, progress); its return value must be picklable. `progress` may be called
            with any small dictionary.
        workers: processes, each with one thread; 0 runs everything in this process, one after another.
        on_event: called in this process for every :class:`Event`.

    Raises:
        TaskError: when a task fails or a worker dies; the other workers are ended first.
    """
    if workers == 0:
        results = {}
        for task in tasks:
            key = task.key
            on_event(Event("start", key, os.getpid()))
            try:
                results[key] = run(task, partial(_forward, on_event, key))
            except Exception as error:
                raise TaskError.of(key, traceback.format_exc()) from error
            on_event(Event("done", key, results[key]))
        return results
    return _run_in_processes(tasks, run, min(workers, len(tasks)), on_event)


def _run_in_processes(
    tasks: Sequence[Any], run: Callable[[Any, Progress], Any], workers: int, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    waiting, events = context.Queue(), context.Queue()
    for task in [*tasks, *[None] * workers]:
        waiting.put(task)
    # Not daemons: those may have no children, and a task may load its images in processes of its own.
    processes = [context.Process(target=_work, args=(run, waiting, events)) for _ in range(workers)]
    results: dict[str, Any] = {}
    at_work: dict[int, str] = {}  # process id -> key of its last task
    try:
        # The thread count is read when the worker imports its numerical libraries, so it goes through the environment.
        with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"), _deaf_to_ctrl_c():
            for process in processes:
                process.start()
        while len(results) < len(tasks):
            event = _next_event(events, processes, at_work)
            on_event(event)
            if event.kind == "start":
                at_work[event.content] = event.key
            if event.kind == "failed":
                raise TaskError.of(event.key, event.content)
            if event.kind == "done":
                results[event.key] = event.content
        return results
    finally:
        for process in processes:
            if len(results) < len(tasks):
                process.terminate()
            process.join(timeout=5.0)
            if process.is_alive():
                process.kill()


def _next_event(events: Any, processes: Sequence[BaseProcess], at_work: Mapping[int, str]) -> Event:
    while True:
        try:
            return events.get(timeout=1.0)
        except queue.Empty:
            dead = [process for process in processes if process.exitcode not in (None, 0)]
            if dead:
                key = at_work.get(dead[0].pid or 0)
                raise TaskError(
                    f"{key or 'a task'} failed: its process ended with exit code {dead[0].exitcode} (out of memory, or "
                    "killed)",
                    key,
                ) from None
