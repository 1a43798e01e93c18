"""Sentences and the result table on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from puma_plugin.experiments.reporting.tables import COLUMNS, count, figure


def say(console: Console, text: str) -> None:
    """Print a text as it is: paths and names of distributions may hold brackets, which rich takes for markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def show_table(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print the main table of metrics.json, and what the figures say."""
    table = Table(
        title="R@1 on test classes, %; weights trained; seconds of training", title_justify="left", padding=(0, 0)
    )
    table.add_column("method")  # the only one that may wrap: figures stay whole on 80 columns
    for name in (*COLUMNS, "weights", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in metrics["methods"]:
        label = row["label"] + (" *" if row.get("recorded") else "")
        style = "bold" if row["key"] == metrics["accent"] else "dim" if row.get("recorded") else None
        cells = [figure(row["scores"][name], " ±") for name in COLUMNS]
        table.add_row(Text(label), *cells, count(row["trainable"]), f"{row['seconds']:.0f}", style=style)
    console.print(table)
    say(console, f"±: half the width of the {metrics['interval_name']}")
    if any(row.get("recorded") for row in metrics["methods"]):
        say(console, "* from the recorded full comparison that comes with the package, over its data seeds")
    for sentence in metrics["findings"]:
        say(console, f"- {sentence}")
