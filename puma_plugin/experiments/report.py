"""report.html: one self-contained page with tables, charts and pictures. It says what metrics.json says, no more."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from puma_plugin.evaluation.result import short_name
from puma_plugin.experiments.figures import curve_chart, map_chart, method_chart, prompt_chart
from puma_plugin.experiments.pictures import Query, query_html
from puma_plugin.experiments.report_style import CSS
from puma_plugin.utils import atomic_write


@dataclass
class EmbeddingMap:
    """Two-dimensional positions of test images: `points` (N, 2), `members` (N,) index of the distribution."""

    label: str
    points: np.ndarray
    members: np.ndarray


@dataclass
class ReportPictures:
    """What the page shows beside metrics.json: maps, prompt weights (distributions, M), queries, and a cost chart."""

    maps: list[EmbeddingMap] = field(default_factory=list)
    prompt_weights: np.ndarray | None = None
    queries: list[Query] = field(default_factory=list)
    pareto: str = ""


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


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


def count(value: int | None) -> str:
    """A number of weights in words of four characters or so."""
    if value is None:
        return "-"
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k" if value >= 1e3 else str(value)


def _main_table(rows: Sequence[Mapping[str, Any]], accent: str) -> str:
    columns = (("harmonic", "harmonic"), ("unified", "unified"), ("worst", "worst"), ("leak", "leak"))
    head = "".join(f"<th>{label}</th>" for _, label in columns)
    body = []
    for row in rows:
        cells = "".join(_cell(row["scores"].get(key)) for key, _ in columns)
        seconds = "-" if not row.get("seconds") else f"{row['seconds']:.0f}"
        body.append(
            f"<tr{_row_class(row, accent)}>{_name(row)}{cells}<td>{count(row['trainable'])}</td><td>{seconds}</td></tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr><th>method</th>{head}<th>trainable<br>weights</th>'
        f"<th>seconds<br>to train</th></tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _distribution_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], accent: str) -> str:
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


def _metric_table(result: Mapping[str, Any], intervals: Mapping[str, Mapping[str, float | None]]) -> str:
    """Every metric of a single evaluation: a row for each distribution, mean and gallery."""
    rows = [(name, f"per_distribution.{name}", metrics) for name, metrics in result["per_distribution"].items()]
    for part in ("harmonic_mean", "arithmetic_mean", "worst", "unified"):
        # Separate models have no joint gallery.
        rows += [(part.replace("_", " "), part, result[part])] if result[part] is not None else []
    present = {metric for _, _, metrics in rows for metric in metrics}
    recalls = sorted((name for name in present if name.startswith("recall_at_")), key=lambda name: int(name[10:]))
    columns = [*recalls, "map_at_r", "r_precision"]
    head = "".join(f"<th>{escape(short_name(name))}</th>" for name in columns)
    body = ""
    for label, place, metrics in rows:
        cells = ""
        for name in columns:
            own = intervals.get(f"{place}.{name}", {"low": None, "high": None})
            cells += _cell({**own, "mean": metrics[name]} if name in metrics else None)
        body += f"<tr><th>{escape(label)}</th>{cells}</tr>"
    return (
        f'<div class="scroll"><table class="dense"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="note">In percent. R@k: queries with a hit among their k nearest. MAP@R and R-precision look '
        "at the R nearest, R being the number of a query's positives.</p>"
    )


def _cards(cards: Sequence[Mapping[str, str]]) -> str:
    inner = "".join(
        f'<div class="card"><b>{escape(card["figure"])}</b><span>{escape(card["text"])}</span></div>' for card in cards
    )
    return f'<div class="cards">{inner}</div>' if cards else ""


def _grid_table(rates: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    grid = rates["multipliers"]
    head = "".join(f"<th>{multiplier:g}&times;</th>" for multiplier in grid)
    body = []
    for key, scores in rates["scores"].items():
        cells = []
        for multiplier in grid:
            mark = multiplier == rates["chosen"][key]
            text = percent(scores[f"{multiplier:g}"])
            cells.append(f"<td><b>{text}</b></td>" if mark else f"<td>{text}</td>")
        body.append(f"<tr><th>{escape(labels.get(key, key))}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>method</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">{escape(rates["explanation"])}</p>'
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items() if value is not None
    )
    return f"<dl>{rows}</dl>"


def _section(key: str, title: str, content: str) -> str:
    return f'<section id="{key}"><h2>{escape(title)}</h2>{content}</section>'


def _sections(metrics: Mapping[str, Any], pictures: ReportPictures) -> list[tuple[str, str, str]]:
    rows, names, accent = metrics["methods"], metrics["distributions"], metrics["accent"]
    labels = {row["key"]: row["label"] for row in rows}
    sections = []
    chart = method_chart(
        [
            {
                "label": row["label"],
                **{bound: _points(row["scores"]["harmonic"][bound]) for bound in ("mean", "low", "high")},
                "accent": row["key"] == accent,
                "recorded": bool(row.get("recorded")),
            }
            for row in rows
        ]
    )
    findings = "".join(f"<li>{escape(sentence)}</li>" for sentence in metrics["findings"])
    result = (f"<ul>{findings}</ul>" if findings else "") + _main_table(rows, accent)
    result += f'<p class="note">{escape(metrics["explanation"])}</p>'
    if len(rows) > 1:
        hollow = " Hollow points are from the recorded run." if any(row.get("recorded") for row in rows) else ""
        result += f"<figure>{chart}<figcaption>{escape(metrics['interval_note'] + hollow)}</figcaption></figure>"
    sections.append(("result", "Result", result))
    if pictures.pareto:
        note = (
            "The line joins what nothing cheaper reaches. Dashed: nothing trained, so no cost on a logarithmic axis. "
            "Bars: 95 % intervals. Seconds depend on the machine and on what else it does."
        )
        sections.append(
            ("cost", "Score and cost", f"<figure>{pictures.pareto}<figcaption>{note}</figcaption></figure>")
        )
    sections.append(
        (
            "distributions",
            "Per distribution",
            "<p>R@1 in percent of each distribution's queries against its own gallery. The stronger the tint, the "
            f"better among the methods.</p>{_distribution_table(rows, names, accent)}",
        )
    )
    runs = metrics.get("runs", [])
    if len(runs) == 1 and "intervals" in runs[0]:
        table = _metric_table(runs[0]["result"], runs[0]["intervals"])
        sections.append(("metrics", "Every metric", table))
    if metrics.get("curves"):
        curve = curve_chart(metrics["curves"], labels.get(accent, accent))
        sections.append(
            (
                "curves",
                "While training",
                f"<figure>{curve}<figcaption>{escape(metrics['curve_note'])}</figcaption></figure>",
            )
        )
    if pictures.maps:
        maps = "".join(
            f"<figure><h3>{escape(item.label)}</h3>"
            f"{map_chart('abcdef'[index], item.points, item.members, names)}</figure>"
            for index, item in enumerate(pictures.maps)
        )
        note = (
            "A t-SNE map of a sample of the test images, all of them classes never seen in training. The map keeps "
            "neighbourhoods; distances between far groups mean nothing."
        )
        sections.append(("map", "Embedding map", f'<div class="maps">{maps}</div><p class="note">{note}</p>'))
    if pictures.prompt_weights is not None:
        note = (
            "The weight with which each prompt of the pool enters the prompt of an image, averaged over the test "
            "images of a distribution. Rows that differ are distributions that the pool treats differently."
        )
        chart = prompt_chart(pictures.prompt_weights, names)
        sections.append(("prompts", "Prompt weights", f"<figure>{chart}<figcaption>{note}</figcaption></figure>"))
    if pictures.queries:
        intro = (
            "<p>Queries drawn at random, not chosen, each with its nearest neighbours in the joint gallery of all "
            "distributions. A solid green frame is the right class, a dashed red one is wrong.</p>"
        )
        sections.append(("neighbours", "Nearest neighbours", intro + query_html(pictures.queries)))
    if metrics.get("learning_rates"):
        sections.append(("rates", "Learning rates", _grid_table(metrics["learning_rates"], labels)))
    settings = json.dumps(metrics["settings"], indent=2, default=str)
    run = _facts(metrics["facts"]) + f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>"
    sections.append(("run", "This run", run))
    return sections


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def render_report(metrics: Mapping[str, Any], pictures: ReportPictures) -> str:
    """The page as a string.

    Args:
        metrics: the content of metrics.json (see :func:`puma_plugin.experiments.summary.summarise`).
        pictures: the rest.
    """
    sections = _sections(metrics, pictures)
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    body = "".join(_section(key, title, content) for key, title, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(metrics['title'])}</title><style>{CSS}</style></head><body><main>"
        f'<h1>{escape(metrics["title"])}</h1><p class="lead">{escape(metrics["lead"])}</p>'
        f"{_cards(metrics['cards'])}<nav>{links}</nav>{body}</main></body></html>\n"
    )


def write_report(path: str | os.PathLike[str], metrics: Mapping[str, Any], pictures: ReportPictures) -> None:
    """Write the page to `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(render_report(metrics, pictures), encoding="utf-8")
