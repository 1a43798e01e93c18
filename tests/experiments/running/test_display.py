"""What the terminal shows while jobs run."""

import io

from rich.console import Console

from puma_plugin.experiments.running.display import JobDisplay
from puma_plugin.experiments.running.pool import Event


def shown(display: JobDisplay, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(display.progress)
    return console.file.getvalue()


def test_progress_figure_is_r_at_1_and_stays_until_the_next() -> None:
    console = Console(width=80, force_terminal=True, file=io.StringIO())
    with JobDisplay(console, {"a": "PUMA · data 0", "b": "Linear head"}, "Training", finished=1) as display:
        assert "1/3" in shown(display)
        display(Event("start", "a"))
        assert "loading" in shown(display)
        display(Event("progress", "a", {"stage": "images"}))
        display(Event("progress", "a", {"step": 57, "steps": 627, "validation": 0.6341}))
        display(Event("progress", "a", {"step": 58, "steps": 627}))
        text = shown(display, width=80)
        assert "58/627" in text
        assert "R@1 63.4 %" in text
        assert "held-out classes" in text
        display(Event("done", "a"))
        assert "PUMA" not in shown(display)
        assert "2/3" in shown(display)


def test_one_line_per_finished_job_where_there_is_no_terminal() -> None:
    console = Console(width=80, file=io.StringIO())
    with JobDisplay(console, {"a": "PUMA"}, "Training") as display:
        display(Event("start", "a"))
        display(Event("progress", "a", {"step": 1, "steps": 2}))
        display(Event("done", "a"))
    assert console.file.getvalue() == "[1/1] PUMA\n"


def test_a_line_now_and_then_where_there_is_no_terminal() -> None:
    """Hours of training in the log of a cluster are not silent: where it is, its last figure and the time left."""
    console = Console(width=40, file=io.StringIO())
    with JobDisplay(console, {"a": "PUMA"}, "Training", seconds=0) as display:
        display(Event("start", "a"))
        display(Event("progress", "a", {"step": 1500, "steps": 4000, "resumed": True, "stage": "birds (1 of 2)"}))
        display(Event("progress", "a", {"step": 1501, "steps": 4000, "validation": 0.6341}))
        display(Event("progress", "a", {"step": 1502, "steps": 4000}))
        display(Event("done", "a"))
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "PUMA, birds (1 of 2): goes on from step 1,500 of 4,000"
    assert lines[1].startswith("PUMA: step 1,501 of 4,000, R@1 63.4 % on held-out classes")
    assert lines[2].startswith("PUMA: step 1,502 of 4,000, R@1 63.4 % on held-out classes, ")
    assert lines[2].endswith(" left")
    assert lines[3:] == ["[1/1] PUMA"]


def test_a_stage_is_no_figure_whatever_it_is_called() -> None:
    console = Console(width=40, file=io.StringIO())
    with JobDisplay(console, {"a": "PUMA"}, "Training", seconds=0) as display:
        display(Event("start", "a"))
        display(Event("progress", "a", {"step": 1, "steps": 9, "validation": 0.6341}))
        display(Event("progress", "a", {"step": 1, "steps": 9, "stage": "R@1 pictures (1 of 2)"}))
    assert console.file.getvalue().splitlines() == [
        "PUMA: step 1 of 9, R@1 63.4 % on held-out classes",
        "PUMA: step 1 of 9, R@1 pictures (1 of 2)",
    ]


def test_brackets_in_names_are_no_markup() -> None:
    console = Console(width=80, force_terminal=True, file=io.StringIO())
    with JobDisplay(console, {"a": "PUMA [/old]"}, "Training") as display:
        display(Event("start", "a"))
        display(Event("progress", "a", {"stage": "birds [new] (1 of 2)"}))
        text = shown(display)
    assert "PUMA [/old]" in text
    assert "birds [new] (1 of 2)" in text
