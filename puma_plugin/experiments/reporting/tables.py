"""The main table of a comparison as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("harmonic", "unified", "worst", "leak")


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
        cells = [_cell(row["scores"][column]) for column in COLUMNS]
        label = row["label"].replace("|", "\\|")
        lines.append(f"| {label} | {' | '.join(cells)} | {row['trainable']:,} | {row['seconds']:.0f} | {row['runs']} |")
    return "\n".join(lines)


def _cell(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["mean"] is None:
        return "-"
    mean = f"{100 * interval['mean']:.1f}"
    if interval["low"] is None:
        return mean
    half = (interval["high"] - interval["low"]) / 2
    return f"{mean} ± {100 * half:.1f}"
