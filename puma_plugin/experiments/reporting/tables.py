"""The main table of a comparison as Markdown, and what its other forms share with that."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("harmonic", "unified", "worst", "leak")
"""The scores that the main table shows."""


def percent(value: float | None) -> str:
    """A fraction as percent, or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def count(value: int | None) -> str:
    """A number of weights in words of four characters or so."""
    if value is None:
        return "-"
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k" if value >= 1e3 else str(value)


def figure(interval: Mapping[str, Any] | None, plus_minus: str = " ± ") -> str:
    """A mean in percent, with half the width of its interval where there is one."""
    if interval is None or interval["mean"] is None:
        return "-"
    half = "" if interval["low"] is None else f"{plus_minus}{percent((interval['high'] - interval['low']) / 2)}"
    return percent(interval["mean"]) + half


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means in percent, with half the width of their 95 % interval where there is one.

    Args:
        rows: as :func:`puma_plugin.experiments.reporting.summary.method_rows` makes them.
    """
    lines = [
        "| method | " + " | ".join(COLUMNS) + " | trained weights | seconds | runs |",
        "|---|" + "---|" * (len(COLUMNS) + 3),
    ]
    for row in rows:
        cells = [figure(row["scores"][column]) for column in COLUMNS]
        label = row["label"].replace("|", "\\|")
        lines.append(f"| {label} | {' | '.join(cells)} | {row['trainable']:,} | {row['seconds']:.0f} | {row['runs']} |")
    return "\n".join(lines)


def explained(metrics: Mapping[str, Any], where: str) -> str:
    """What the columns of the main table are, what its intervals are, and what is to be remarked.

    Args:
        metrics: as :func:`puma_plugin.experiments.reporting.metrics.common_metrics` makes them.
        where: where this form of the table shows the intervals, such as "Below each figure".
    """
    return " ".join([metrics["explanation"], f"{where}: {metrics['interval_method']}", *metrics.get("remarks", ())])
