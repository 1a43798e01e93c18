"""The report's charts, as inline SVG that follows the page's colours (light or dark)."""

import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np

from puma_plugin.utils import atomic_write

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, NullLocator
except ImportError as error:
    raise ImportError(
        "charts need matplotlib: pip install 'puma_plugin[plots]'; `puma train` and `puma evaluate` also run without, "
        "with --report false"
    ) from error

# Colours that stay apart for colour-blind readers and are legible on white and on black.
PALETTE = ("#2f86d1", "#e08a00", "#1f9e77", "#cf5fa0", "#d8552b", "#8a6fd1", "#3fb5c9", "#8f9a2a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
ACCENT, NEUTRAL = "#d8552b", "#7d8794"
# Text and lines are drawn in this colour and then set to the colour of the surrounding text.
_INK = "#010203"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of folders and classes are no formulas
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def colour(index: int) -> str:
    """The colour of the index-th distribution or curve."""
    return PALETTE[index % len(PALETTE)]


def _svg(figure: Figure, name: str, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.04)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
    # Several charts share one page: their ids must not meet.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1; font-family: inherit", text)
    size = re.search(r'<svg[^>]*?viewBox="0 0 ([\d.]+) [\d.]+"', text)
    width = float(size.group(1)) * 4 / 3 if size else 720.0
    head = f'<svg role="img" aria-label="{description}" style="max-width:{width:.0f}px" '
    text = re.sub(r"<svg [^>]*?viewBox", head + "viewBox", text, count=1)
    return text.strip()


@contextmanager
def _style(name: str, **changes: Any) -> Iterator[None]:
    """matplotlib's settings inside.

    Letters that its own font has not are no fault: the viewer's font draws them, as texts stay texts in our SVG.
    """
    with matplotlib.rc_context(cast(Any, {**_STYLE, "svg.hashsalt": name, **changes})), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from font")
        yield


def _draw(name: str, description: str, size: tuple[float, float], paint: Any) -> str:
    with _style(name):
        figure = Figure(figsize=size)
        paint(figure)
        return _svg(figure, name, description)


def _grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    axes.grid(axis=axis, color=_INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


def method_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Harmonic mean of R@1 per method, with its interval.

    Args:
        rows: per method `label`, `mean`, `low`, `high` (in percent; the bounds may be None), `accent`, `recorded`.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _grid(axes, "x")
        for place, row in enumerate(reversed(rows)):
            shade = ACCENT if row["accent"] else NEUTRAL
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=shade, linewidth=2.2, solid_capstyle="round")
            face = "none" if row["recorded"] else shade
            axes.plot(row["mean"], place, "o", color=shade, markerfacecolor=face, markersize=7)
            axes.annotate(
                f"{row['mean']:.1f}", (row["mean"], place), (0, 7), textcoords="offset points", ha="center", fontsize=9
            )
        axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.3)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("harmonic mean of R@1, %")

    return _draw("methods", "Harmonic mean of R@1 per method", (7.2, 0.9 + 0.46 * len(rows)), paint)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, score) that no cheaper or equally cheap one reaches, by rising cost."""
    kept: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or score > kept[-1][1]:
            kept.append((cost, score))
    return kept


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending positions moved as little as they must be to lie `gap` apart, from the top down and not above 1."""
    placed: list[float] = []
    for position in wanted:
        placed.append(max(position, placed[-1] + gap) if placed else position)
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _paint_pareto(axes: Axes, rows: Sequence[Mapping[str, Any]], cost: str, label: str) -> None:
    _grid(axes, "y")
    axes.set_xscale("log")
    shown = [row for row in rows if row[cost]]
    for row in rows:
        if not row[cost]:
            # Nothing trained: no place on a logarithmic axis, so its score is a line.
            axes.axhline(row["mean"], color=NEUTRAL, linewidth=1.0, linestyle=(0, (4, 3)))
    free = max((row["mean"] for row in rows if not row[cost]), default=-math.inf)
    front = [point for point in _front([(row[cost], row["mean"]) for row in shown]) if point[1] > free]
    if front:
        axes.plot(
            *zip(*front, strict=True), color=NEUTRAL, linewidth=1.0, drawstyle="steps-post", linestyle=":", zorder=1
        )
    for row in shown:
        shade = ACCENT if row["accent"] else PALETTE[0]
        if row["low"] is not None:
            axes.plot([row[cost]] * 2, [row["low"], row["high"]], color=shade, linewidth=1.2, alpha=0.6)
        # The accent on top of others of the same cost.
        axes.plot(row[cost], row["mean"], "o", color=shade, markersize=6, zorder=4 if row["accent"] else 3)
    axes.margins(x=0.08, y=0.12)
    ticks = _log_ticks(*axes.get_xlim(), [row[cost] for row in shown])
    axes.set_xticks(ticks, [EngFormatter(sep="")(tick) if tick >= 1000 else f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.set_ylabel("harmonic mean of R@1, %")
    # Labels in a column of their own, joined to their points: methods of like cost and score would overprint.
    low, high = axes.get_ylim()
    ordered = sorted(rows, key=lambda row: row["mean"])
    height = _pareto_size(rows)[1] / 2.5  # of this one of two, in inches
    heights = _spread([(row["mean"] - low) / (high - low) for row in ordered], 0.22 / height)
    for row, height in zip(ordered, heights, strict=True):
        free_line = not row[cost]
        axes.annotate(
            row["label"],
            (1.0 if free_line else row[cost], row["mean"]),
            (1.04, height),
            xycoords=("axes fraction" if free_line else "data", "data"),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=ACCENT if row["accent"] else _INK,
            arrowprops={"arrowstyle": "-", "color": NEUTRAL, "linewidth": 0.6, "relpos": (0, 0.5)},
        )


def _pareto(rows: Sequence[Mapping[str, Any]]) -> Any:
    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1)
        _paint_pareto(upper, rows, "trainable", "trained weights")
        _paint_pareto(lower, rows, "seconds", "seconds of training")
        figure.subplots_adjust(hspace=0.32)

    return paint


def _log_ticks(low: float, high: float, values: Sequence[float]) -> list[float]:
    """Round numbers of a logarithmic axis, few enough to be told apart; the ends of the values where there are none."""
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3.4 else (1,)
    found = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        for step in steps
        if low <= step * 10.0**power <= high
    ]
    return found if len(found) > 1 else sorted({min(values), max(values)})


def _pareto_size(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """In inches; so high that the labels have room."""
    return 7.2, max(8.0, 2.5 * 0.23 * len(rows))


def pareto_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Harmonic mean of R@1 against trained weights and against seconds of training, with logarithmic costs.

    The line joins the rows that no cheaper row reaches.

    Args:
        rows: per method `label`, `mean`, `low`, `high` (in percent; the bounds may be None), `trainable`, `seconds`
            (0 for what is not trained), `accent`. At least one row has to be trained.
    """
    return _draw(
        "pareto", "Harmonic mean of R@1 against trained weights and seconds", _pareto_size(rows), _pareto(rows)
    )


def write_pareto(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write :func:`pareto_chart` as an SVG file of its own, black on white."""
    white = {"figure.facecolor": "white", "savefig.facecolor": "white"}
    with _style("pareto", **white), atomic_write(path) as temporary:
        figure = Figure(figsize=_pareto_size(rows))
        _pareto(rows)(figure)
        figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})


def curve_chart(curves: Mapping[str, Sequence[Mapping[str, float]]], accent: str) -> str:
    """R@1 on held-out training classes while training.

    Args:
        curves: label -> points with `epoch`, `mean`, `low`, `high` (percent; the band is the range over the runs).
        accent: the label to draw strongly.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _grid(axes, "y")
        others = [label for label in curves if label != accent]
        for label, points in curves.items():
            shade = ACCENT if label == accent else PALETTE[(0, 2, 5, 6, 1, 3, 7)[others.index(label) % 7]]
            epochs = [point["epoch"] for point in points]
            axes.fill_between(
                epochs, [p["low"] for p in points], [p["high"] for p in points], color=shade, alpha=0.15, linewidth=0
            )
            axes.plot(
                epochs,
                [point["mean"] for point in points],
                color=shade,
                linewidth=2.4 if label == accent else 1.5,
                label=label,
                marker="o",
                markersize=3,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel("R@1 on held-out training classes, %")
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=9.5, handlelength=1.4)

    return _draw("curves", "R@1 on held-out training classes over the epochs", (7.2, 3.6), paint)


def map_chart(name: str, points: np.ndarray, members: np.ndarray, distributions: Sequence[str]) -> str:
    """A two-dimensional map of embeddings, coloured by distribution.

    Args:
        name: distinguishes the charts of one page (letters only).
        points: (N, 2).
        members: (N,) index of each point's distribution.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, label in enumerate(distributions):
            chosen = points[members == index]
            axes.scatter(
                chosen[:, 0], chosen[:, 1], s=9, c=colour(index), alpha=0.75, linewidths=0,
                # Each colour with each marker, before the first pair comes again.
                marker=MARKERS[(index + index // len(PALETTE)) % len(MARKERS)],
                label=f"\u200b{label}" if label.startswith("_") else label,  # matplotlib takes no _ for a legend
            )  # fmt: skip
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_axis_off()
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=9.5, markerscale=1.8, handletextpad=0.2,
            columnspacing=1.0,
        )  # fmt: skip

    return _draw(f"map{name}", "Map of the test images' embeddings by distribution", (6.0, 5.2), paint)


def prompt_chart(weights: np.ndarray, distributions: Sequence[str]) -> str:
    """Mean weight of each prompt per distribution, as a heat map.

    Args:
        weights: (distributions, M), cosines in [-1, 1].
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        limit = max(float(np.abs(weights).max()), 1e-6)
        image = axes.pcolormesh(weights, cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolors="none")
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(distributions)) + 0.5, distributions)
        axes.set_xticks(np.arange(weights.shape[1]) + 0.5, [str(index + 1) for index in range(weights.shape[1])])
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        if weights.shape[1] <= 12:
            for (row, column), value in np.ndenumerate(weights):
                shade = "white" if abs(value) > 0.6 * limit else "#222222"
                axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
        axes.set_xlabel("prompt")
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=9)
        bar.set_label("mean weight")

    height = 1.0 + 0.36 * len(distributions)
    return _draw("prompts", "Mean prompt weight per distribution", (7.2, height), paint)
