"""Progress on the terminal: one bar per running job and one for all of them; lines where there is no terminal."""

import os
import signal
import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from puma_plugin.experiments.reporting.terminal import say
from puma_plugin.experiments.running.pool import Event

LOADING = "loading"
"""The stage of a job that has no words of its own yet."""

_LEGEND = "R@1: held-out classes"


class TrainingConsole(Console):
    """Where a training writes. If nobody reads it any more, as behind `head`, the run ends as by Ctrl-C."""

    def on_broken_pipe(self) -> None:
        """Called by rich, whose own method ends the process at once, without a word or a checkpoint."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("\nnobody reads the output any more", file=sys.stderr, flush=True)
        signal.raise_signal(signal.SIGINT)


class JobDisplay:
    """Shows a pool's events. Where the output is no terminal, such as the log of a cluster, it prints lines instead.

    A running job then has a line every `seconds` seconds, and a finished one its last.

    Args:
        console: where to write.
        names: job key -> what to call it.
        title: name of the overall bar.
        finished: jobs that were finished by an earlier run.
        seconds: between two lines of a job where the output is no terminal.
    """

    def __init__(
        self, console: Console, names: dict[str, str], title: str, finished: int = 0, *, seconds: float = 60.0
    ) -> None:
        self.console = console
        self.names = names
        self.finished = finished
        self.total = finished + len(names)
        self.seconds = seconds
        self.bars: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}  # job key -> when its last line was printed
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figure]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            # A step may take longer than the half minute that is the default.
            speed_estimate_period=600.0,
        )
        self.overall = self.progress.add_task(title, total=self.total, completed=finished, figure=_LEGEND)

    def __enter__(self) -> "JobDisplay":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Take one event of the pool."""
        name = self.names[event.key]
        if event.kind == "start":
            self.bars[event.key] = self.progress.add_task(name, total=None, figure=LOADING, validation=None)
            self.said[event.key] = time.monotonic()
        elif event.kind == "progress":
            self._update(event.key, event.content)
        elif event.kind == "done":
            self.finished += 1
            self.progress.remove_task(self.bars.pop(event.key))
            self.progress.update(self.overall, completed=self.finished)
            if not self.console.is_terminal:
                self._print(f"[{self.finished}/{self.total}] {name}")

    def _update(self, key: str, content: dict[str, Any]) -> None:
        changes: dict[str, Any] = {}
        if content.get("stage"):
            changes = {"figure": content["stage"], "validation": None}
        if (validation := content.get("validation")) is not None:
            changes = {"figure": f"R@1 {100 * validation:.1f} %", "validation": validation}
        self.progress.update(self.bars[key], completed=content.get("step", 0), total=content.get("steps"), **changes)
        if content.get("resumed"):
            name = ", ".join(filter(None, (self.names[key], content.get("stage"))))
            self._print(f"{name}: goes on from step {content['step']:,} of {content['steps']:,}")
        elif not self.console.is_terminal and time.monotonic() - self.said[key] >= self.seconds:
            self.said[key] = time.monotonic()
            self._print(self._line(key))

    def _line(self, key: str) -> str:
        """Where a job is, in words; the time left is that of the bars."""
        task = next(task for task in self.progress.tasks if task.id == self.bars[key])
        parts = [] if task.total is None else [f"step {task.completed:,.0f} of {task.total:,.0f}"]
        figure = str(task.fields["figure"])
        if task.fields["validation"] is not None:
            figure += " on held-out classes"
        parts += [figure] if figure != LOADING or not parts else []
        if task.time_remaining:
            parts.append(f"{timedelta(seconds=round(task.time_remaining))} left")
        return f"{self.names[key]}: {', '.join(parts)}"

    def _print(self, line: str) -> None:
        say(self.console, line)
