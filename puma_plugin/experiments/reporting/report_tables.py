"""The tables of report.html."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from puma_plugin.evaluation.result import short_name
from puma_plugin.experiments.contestants.methods import multiplier_text
from puma_plugin.experiments.reporting.intervals import excludes_zero
from puma_plugin.experiments.reporting.tables import COLUMNS, count, percent


def _cell(interval: Mapping[str, Any] | None, shade: float | None = None) -> str:
    if interval is None or interval["mean"] is None:
        return "<td>-</td>"
    bounds = ""
    if interval["low"] is not None:
        bounds = f"<small>{percent(interval['low'])} to {percent(interval['high'])}</small>"
    style = "" if shade is None else f' style="background: rgba(var(--tint), {shade:.2f})"'
    return f"<td{style}>{percent(interval['mean'])}{bounds}</td>"


def _row_class(row: Mapping[str, Any], accent: str) -> str:
    names = [name for name, on in (("accent", row["key"] == accent), ("recorded", row.get("recorded"))) if on]
    return f' class="{" ".join(names)}"' if names else ""


def _name(row: Mapping[str, Any], notes: bool = True) -> str:
    parts = ("recorded" if row.get("recorded") else "", row.get("note", "") if notes else "")
    note = "; ".join(part for part in parts if part)
    return f"<th>{escape(row['label'])}{f'<small>{escape(note)}</small>' if note else ''}</th>"


def main_table(rows: Sequence[Mapping[str, Any]], accent: str) -> str:
    """The headline figures and costs of each method."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = []
    for row in rows:
        cells = "".join(_cell(row["scores"][name]) for name in COLUMNS)
        seconds = "-" if not row.get("seconds") else f"{row['seconds']:.0f}"
        body.append(
            f"<tr{_row_class(row, accent)}>{_name(row)}{cells}<td>{count(row['trainable'])}</td><td>{seconds}</td></tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr><th>method</th>{head}<th>trainable<br>weights</th>'
        f"<th>seconds<br>to train</th></tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def distribution_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], accent: str) -> str:
    """R@1 of each method on each distribution, tinted by column."""
    means = {
        name: [row["per_distribution"][name]["mean"] for row in rows if name in row["per_distribution"]]
        for name in names
    }
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for row in rows:
        cells = []
        for name in names:
            interval = row["per_distribution"].get(name)
            shade = None
            if interval is not None and interval["mean"] is not None:
                low, high = min(means[name]), max(means[name])
                shade = 0.0 if high - low < 1e-9 else 0.28 * (interval["mean"] - low) / (high - low)
            cells.append(_cell(interval, shade))
        body.append(f"<tr{_row_class(row, accent)}>{_name(row, notes=False)}{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="dense"><thead><tr><th>method</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _metric_table(rows: Mapping[str, tuple[str, Sequence[str]]], cell: Callable[[str], str]) -> str:
    """A table of figures by their names.

    Args:
        rows: label -> what the names of its figures begin with, and its metrics.
        cell: name of a figure, such as "unified.recall_at_1" -> its <td>.
    """
    present = {metric for _, metrics in rows.values() for metric in metrics}
    recalls = sorted((name for name in present if name.startswith("recall_at_")), key=lambda name: int(name[10:]))
    columns = [*recalls, *(name for name in ("map_at_r", "r_precision") if name in present)]
    head = "".join(f"<th>{escape(short_name(name))}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{escape(label)}</th>"
        + "".join(cell(f"{place}.{name}") if name in metrics else "<td>-</td>" for name in columns)
        + "</tr>"
        for label, (place, metrics) in rows.items()
    )
    return (
        f'<div class="scroll"><table class="dense"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def evaluation_sections(run: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """The sections of a single evaluation: every metric, and how they differ from a baseline's."""
    result, intervals = run["result"], run["intervals"]
    rows = {name: (f"per_distribution.{name}", list(own)) for name, own in result["per_distribution"].items()}
    for part in ("harmonic_mean", "arithmetic_mean", "worst", "unified"):
        # Separate models have no joint gallery.
        rows |= {part.replace("_", " "): (part, list(result[part]))} if result[part] is not None else {}

    def figure(name: str) -> str:
        own = intervals[name]
        return _cell({"mean": own["value"], "low": own["low"], "high": own["high"]})

    note = (
        '<p class="note">In percent. R@k: queries with a hit among their k nearest. MAP@R and R-precision look '
        "at the R nearest, R being the number of a query's positives. The distributions search their own gallery, "
        "unified is the joint one. Below each figure: its 95 % bootstrap interval.</p>"
    )
    sections = [("metrics", "Every metric", _metric_table(rows, figure) + note)]
    if baseline is None:
        return sections
    differences = baseline["differences"]
    shared = {
        label: (place, found)
        for label, (place, metrics) in rows.items()
        if (found := [metric for metric in metrics if f"{place}.{metric}" in differences])
    }
    kind = (
        "both were given the same draws of classes"
        if baseline["paired"]
        else "the two did not ask for the same queries"
    )
    note = (
        f'<p class="note">This evaluation less {escape(str(baseline["path"]))}, in points, with '
        f"{100 * baseline['confidence']:g} % bootstrap intervals ({kind}). Bold: outside chance.</p>"
    )
    table = _metric_table(shared, lambda name: _difference(differences[name]))
    return [*sections, ("baseline", "Against the baseline", table + note)]


def _difference(interval: Mapping[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "<td>-</td>"
    text = f"{100 * value:+.1f}"
    if low is None or high is None:
        return f"<td>{text}</td>"
    shown = f"<b>{text}</b>" if excludes_zero(interval) else text
    return f"<td>{shown}<small>{100 * low:+.1f} to {100 * high:+.1f}</small></td>"


def grid_table(rates: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The learning rates that were tried, the chosen one in bold."""
    grid = rates["multipliers"]
    head = "".join(f"<th>{multiplier_text(multiplier)}&times;</th>" for multiplier in grid)
    body = []
    for key, scores in rates["scores"].items():
        cells = []
        for multiplier in grid:
            mark = multiplier == rates["chosen"][key]
            text = percent(scores[multiplier_text(multiplier)])
            cells.append(f"<td><b>{text}</b></td>" if mark else f"<td>{text}</td>")
        body.append(f"<tr><th>{escape(labels.get(key, key))}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>method</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">{escape(rates["explanation"])}</p>'
    )
