"""A small pool of single-threaded worker processes that stops cleanly when asked to, and reports progress."""

import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from puma_plugin.utils.messages import message_of

Progress = Callable[[dict[str, Any]], None]
# Seconds that a worker which was asked to end has for its step, or its imports (which leave a semaphore behind if they
# are broken off), and for all of it before it is killed. (Schedulers wait for some 30.)
_STEP, _PATIENCE = 10, 20.0
_LEFT = 128 + signal.SIGTERM  # its exit code


@dataclass(frozen=True)
class Event:
    """Something a worker reports: "start" (with its process id), "progress", "done" or "failed" (a TaskError)."""

    kind: str
    key: str
    content: Any = None


class TaskError(ChildProcessError):
    """A task failed, or the process that ran it died.

    Args:
        key: the task's, or another name of it; None where a process died before it said what it was at.
        cause: follows "KEY failed: " in the message.
        log: the traceback, empty for a process that died.
    """

    def __init__(self, key: str | None, cause: str, log: str = "") -> None:
        super().__init__(f"{key or 'a task'} failed: {cause}")
        self.key, self.cause, self.log = key, cause, log

    @classmethod
    def of(cls, key: str, error: Exception) -> "TaskError":
        """Of what the task raised, where it is caught."""
        name, said = type(error).__name__, message_of(error)
        return cls(key, name if said == name else f"{name}: {said}", traceback.format_exc())

    def __reduce__(self) -> tuple[Any, ...]:  # as it comes from a worker; by default with the message alone
        return type(self), (self.key, self.cause, self.log)


def _work(run: Callable[[Any, Progress], Any], tasks: Any, events: Any) -> None:
    leaving = False

    def leave(number: int, frame: FrameType | None) -> None:
        """End as a process does by itself, which gives back its semaphores (tqdm has one) and ends its own children.

        A step may be finished first: processes that load images may just be starting, and would complain.
        """
        nonlocal leaving
        leaving = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler may send one, and the parent another
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would complain about children that end
        signal.signal(signal.SIGALRM, lambda number, frame: sys.exit(_LEFT))
        signal.alarm(_STEP)
        events.cancel_join_thread()  # nobody reads what is still to be sent

    for number in (signal.SIGINT, signal.SIGHUP):  # as _starting has it, which only works in a main thread
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        if leaving:
            sys.exit(_LEFT)
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
            if leaving:
                sys.exit(_LEFT)
            events.put(Event("progress", key, content))

        events.put(Event("start", key, os.getpid()))
        try:
            events.put(Event("done", key, run(task, progress)))
        except Exception as error:
            events.put(Event("failed", key, TaskError.of(key, error)))


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
def _starting() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C and the end of a terminal, from their first moment on.

    These reach the whole process group; only this process acts on them, by ending the workers. For that they hear
    SIGTERM; here it has to wait, as a start that is broken off may leave a process behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(signal.SIGTERM)


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
                raise TaskError.of(key, error) from error
            on_event(Event("done", key, results[key]))
        return results
    return _run_in_processes(tasks, run, min(workers, len(tasks)), on_event)


def _run_in_processes(
    tasks: Sequence[Any], run: Callable[[Any, Progress], Any], workers: int, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with _starting():  # the first queue starts multiprocessing's own process that looks after semaphores
        waiting, events = context.Queue(), context.Queue()
    processes: list[BaseProcess] = []
    results: dict[str, Any] = {}
    at_work: dict[str, int] = {}  # key of a task that was begun -> process id
    try:
        for task in [*tasks, *[None] * workers]:
            waiting.put(task)
        # The thread count is read when the worker imports its numerical libraries, so it goes through the environment.
        with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"), _starting():
            for _ in range(workers):
                # No daemon: those may have no children, and a task may load its images in processes of its own.
                process = context.Process(target=_work, args=(run, waiting, events))
                process.start()
                processes.append(process)
        reports = _Reports(events, processes)
        while len(results) < len(tasks):
            event = reports.next(at_work)
            on_event(event)
            if event.kind == "start":
                at_work[event.key] = event.content
            if event.kind == "failed":
                raise event.content
            if event.kind == "done":
                results[event.key] = event.content
                del at_work[event.key]
        return results
    finally:
        _end(processes, at_once=len(results) < len(tasks))
        for channel in (waiting, events):
            channel.close()
            channel.cancel_join_thread()  # which would wait until all tasks were taken


def _end(processes: Sequence[BaseProcess], at_once: bool) -> None:
    """Wait for the workers, which are asked to end if it has to be `at_once`; kill what does not."""
    if at_once:
        for process in processes:
            process.terminate()
    until = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(timeout=max(until - time.monotonic(), 0.0))
        if process.is_alive():
            process.kill()
            process.join()


class _Reports:
    """The workers' events, until one of them has died."""

    def __init__(self, events: Any, processes: Sequence[BaseProcess]) -> None:
        self.events = events
        self.processes = processes
        self.noticed = math.inf  # when a death was

    def next(self, at_work: Mapping[str, int]) -> Event:
        """The next event.

        Raises:
            TaskError: a worker died, or all ended with a task undone. What they had reported is given first: of one
                that died, what comes within a second.
        """
        while True:
            dead = [process for process in self.processes if process.exitcode not in (None, 0)]
            if dead and time.monotonic() - self.noticed > 1.0:  # whatever the others report meanwhile
                key = next((key for key, worker in at_work.items() if worker == dead[0].pid), None)
                code = dead[0].exitcode
                raise TaskError(key, f"its process ended with exit code {code} (out of memory, or killed)")
            if dead:
                self.noticed = min(self.noticed, time.monotonic())
            nobody_is_left = all(process.exitcode is not None for process in self.processes)
            try:
                return self.events.get(timeout=1.0)
            except queue.Empty:
                if nobody_is_left and not dead:
                    key = next(iter(at_work), None)
                    raise TaskError(key, "it ended its process with exit code 0") from None
