"""Progress on the terminal: one bar per running job and one for all of them."""

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

from puma_plugin.experiments.pool import Event

_LEGEND = "R@1: held-out classes"


class JobDisplay:
    """Shows a pool's events. Where the output is no terminal it prints one line per finished job instead.

    Args:
        console: where to write.
        names: job key -> what to call it.
        title: name of the overall bar.
        finished: jobs that were finished by an earlier run.
    """

    def __init__(self, console: Console, names: dict[str, str], title: str, finished: int = 0) -> None:
        self.console = console
        self.names = names
        self.finished = finished
        self.total = finished + len(names)
        self.bars: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figure]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.overall = self.progress.add_task(f"[bold]{title}", total=self.total, completed=finished, figure=_LEGEND)

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
            self.bars[event.key] = self.progress.add_task(name, total=None, figure="loading")
        elif event.kind == "progress":
            self._update(event.key, event.content)
        elif event.kind == "done":
            self.finished += 1
            self.progress.remove_task(self.bars.pop(event.key))
            self.progress.update(self.overall, completed=self.finished)
            if not self.console.is_terminal:
                self.console.print(f"[{self.finished}/{self.total}] {name}", markup=False, highlight=False)

    def _update(self, key: str, content: dict[str, Any]) -> None:
        changes: dict[str, Any] = {}
        if content.get("stage"):
            changes["figure"] = content["stage"]
        if content.get("validation") is not None:
            changes["figure"] = f"R@1 {100 * content['validation']:.1f} %"
        self.progress.update(self.bars[key], completed=content.get("step", 0), total=content.get("steps"), **changes)
