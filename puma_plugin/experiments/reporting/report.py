"""report.html: one self-contained page with tables, charts and pictures. It says what metrics.json says, no more."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from puma_plugin.experiments.reporting.figures import curve_chart, map_chart, method_chart, prompt_chart
from puma_plugin.experiments.reporting.pictures import Query, query_html
from puma_plugin.experiments.reporting.report_style import CSS
from puma_plugin.experiments.reporting.report_tables import (
    distribution_table,
    evaluation_sections,
    grid_table,
    main_table,
)
from puma_plugin.experiments.reporting.tables import explained
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


def _cards(cards: Sequence[Mapping[str, str]]) -> str:
    inner = "".join(
        f'<div class="card"><b>{escape(card["figure"])}</b><span>{escape(card["text"])}</span></div>' for card in cards
    )
    return f'<div class="cards">{inner}</div>' if cards else ""


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
    result = (f"<ul>{findings}</ul>" if findings else "") + main_table(rows, accent)
    result += f'<p class="note">{escape(explained(metrics, "Below each figure"))}</p>'
    if len(rows) > 1:
        hollow = (
            " Hollow points, with 95 % intervals, are from the recorded run."
            if any(row.get("recorded") for row in rows)
            else ""
        )
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
    runs = metrics.get("runs", [])
    if len(runs) == 1 and "intervals" in runs[0]:
        sections += evaluation_sections(runs[0], metrics.get("baseline"))
    else:
        intro = (
            "<p>R@1 in percent of each distribution's queries against its own gallery. The stronger the tint, the "
            "better among the methods.</p>"
        )
        sections.append(("distributions", "Per distribution", intro + distribution_table(rows, names, accent)))
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
            "A t-SNE map of a sample of the test images. The map keeps neighbourhoods; distances between far groups "
            "mean nothing."
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
        sections.append(("rates", "Learning rates", grid_table(metrics["learning_rates"], labels)))
    settings = json.dumps(metrics["settings"], indent=2, default=str)
    run = _facts(metrics["facts"]) + f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>"
    sections.append(("run", "This run", run))
    return sections


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def render_report(metrics: Mapping[str, Any], pictures: ReportPictures) -> str:
    """The page as a string.

    Args:
        metrics: the content of metrics.json (see :func:`puma_plugin.experiments.reporting.metrics.common_metrics`).
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
