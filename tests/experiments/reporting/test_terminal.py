"""The table on the terminal, on 80 columns, which is also what a pipe or a log gets."""

import re
from io import StringIO

from rich.console import Console

from puma_plugin.experiments.reporting.terminal import say, show_table


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.013, "high": mean + 0.013}


def row(key: str, label: str, **others: object) -> dict[str, object]:
    scores = {"harmonic": interval(0.317), "unified": interval(0.288), "worst": interval(0.18), "leak": interval(0.126)}
    return {"key": key, "label": label, "scores": scores, "trainable": 415_872, "seconds": 123.4, **others}


def shown(rows: list[dict[str, object]]) -> str:
    stream = StringIO()
    metrics = {
        "methods": rows,
        "accent": "puma",
        "interval_name": "95 % t-interval over the training seeds",
        "findings": [
            "PUMA is 4.5 points above PUMA (sampling = balanced), a sentence that is longer than the terminal."
        ],
    }
    show_table(Console(file=stream, width=80), metrics)
    return stream.getvalue()


def test_figures_stay_whole_beside_long_labels() -> None:
    text = shown([row("puma", "PUMA"), row("other", "PUMA, loss.arguments.ema = global and another setting")])
    for figure in ("31.7 ±1.3", "28.8 ±1.3", "18.0 ±1.3", "12.6 ±1.3", "415.9 k", "123"):
        assert text.count(figure) == 2, figure
    assert "…" not in text
    words = re.findall(r"[a-z.]+", text)
    assert {"loss.arguments.ema", "another", "setting"} <= set(words)
    assert "95 % t-interval over the training seeds\n" in text
    assert "a sentence that is longer than the terminal." in text


def test_the_method_in_question_is_bold_and_every_finding_is_told() -> None:
    stream = StringIO()
    metrics = {
        "methods": [row("puma", "PUMA"), row("full", "Full", recorded=True), row("lora", "LoRA")],
        "accent": "puma",
        "interval_name": "interval",
        "findings": ["PUMA is above LoRA.", "PUMA is below Full."],
    }
    show_table(Console(file=stream, width=80, force_terminal=True, color_system="standard"), metrics)
    text = stream.getvalue()
    styles = {label: re.search(rf"\x1b\[(\d)m *{label}", text) for label in ("PUMA", "Full", "LoRA")}
    assert {label: found and found[1] for label, found in styles.items()} == {"PUMA": "1", "Full": "2", "LoRA": None}
    assert text.endswith("- PUMA is above LoRA.\n- PUMA is below Full.\n")


def test_what_was_recorded_is_marked() -> None:
    assert "recorded full comparison" not in shown([row("puma", "PUMA")])
    text = shown([row("puma", "PUMA"), row("full", "Full fine-tuning", recorded=True)])
    assert "Full fine-tuning *" in text
    assert "* from the recorded full comparison" in text


def test_brackets_in_names_are_no_markup() -> None:
    stream = StringIO()
    console = Console(file=stream, width=20)
    say(console, "results in runs/a[/b] of birds [old] and birds [new]")
    assert stream.getvalue() == "results in runs/a[/b] of birds [old] and birds [new]\n"
    assert "birds [old]" in shown([row("puma", "birds [old]")])
