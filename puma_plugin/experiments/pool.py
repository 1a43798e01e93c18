"""A small pool of single-threaded worker processes that stops cleanly on Ctrl-C and reports progress."""

import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

Progress = Callable[[dict[str, Any]], None]


class Task(Protocol):
    """What a pool runs: picklable, with a name of its own."""

    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Event:
    """Something a worker reports: "start", "progress", "done" or "failed"."""

    kind: str
    key: str
    content: Any = None


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

        events.put(Event("start", key))
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
        RuntimeError: when a task fails or a worker dies; the other workers are ended first.
    """
    if workers == 0:
        results = {}
        for task in tasks:
            key = task.key
            on_event(Event("start", key))
            results[key] = run(task, partial(_forward, on_event, key))
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
    try:
        # The thread count is read when the worker imports its numerical libraries, so it goes through the environment.
        with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
            for process in processes:
                process.start()
        while len(results) < len(tasks):
            event = _next_event(events, processes)
            on_event(event)
            if event.kind == "failed":
                raise RuntimeError(f"{event.key} failed:\n{event.content}")
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


def _next_event(events: Any, processes: Sequence[BaseProcess]) -> Event:
    while True:
        try:
            return events.get(timeout=1.0)
        except queue.Empty:
            dead = [process for process in processes if process.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(
                    f"a worker process ended with exit code {dead[0].exitcode} (out of memory, or killed); finished "
                    "jobs are kept, so the same command continues"
                ) from None
