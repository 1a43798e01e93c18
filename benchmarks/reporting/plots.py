"""Plots of a result file: ratio bars, roofline, cost against batch size and against drop probability."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reporting.results import OURS, Comparison, Results, Row
from puma_plugin.utils import atomic_write

# Colours that colour-blind readers can tell apart (Okabe and Ito, and one more), one per contestant everywhere.
COLOURS = {
    "ours": "#0072b2",
    "ours_compiled": "#4c4cff",
    "authors": "#d55e00",
    "authors_compiled": "#e69f00",
    "fixed": "#009e73",
    "fixed_compiled": "#56b4e9",
    "indexed": "#cc79a7",
    "indexed_triton": "#f0e442",
    "triton": "#000000",
    "pml": "#d55e00",
    "two_products": "#009e73",
    "two_products_compiled": "#56b4e9",
    "torch": "#009e73",
    "torch_compiled": "#56b4e9",
    "torch_branches": "#cc79a7",
    "without_adapters": "#f0e442",
    "no_adapters": "#f0e442",  # what earlier files call it
    "full_fine_tuning": "#000000",
}
OTHER_COLOUR = "#999999"


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Write every plot that the file has data for; their paths."""
    plots: dict[str, Callable[[Results], Figure | None]] = {
        "ratios": ratio_bars,
        "roofline": roofline,
        "cost_against_batch": lambda entry: curves(entry, "batch", "batch size B"),
        "cost_against_drop": lambda entry: curves(entry, "drop", "drop probability p"),
        "evaluation_growth": growth,
    }
    written = []
    for name, draw in plots.items():
        figure = draw(results)
        if figure is None:
            continue
        path = folder / f"{name}.svg"
        # Same data, same file: no date and no random ids inside.
        with matplotlib.rc_context({"svg.hashsalt": "puma_plugin"}), atomic_write(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None}, bbox_inches="tight")
        written.append(path)
    return written


def ratio_bars(results: Results) -> Figure | None:
    """Time over ours of every contestant, forward and backward of the operators and the training step."""
    chosen = [
        entry
        for entry in results.comparisons()
        if (entry.subject, entry.mode)
        in (("adapter", "both"), ("prompts", "both"), ("branches", "both"), ("training_step", "step"))
        and OURS in entry.shown
    ]
    groups = [(entry, _ratios(entry)) for entry in chosen]
    if not any(ratios for _, ratios in groups):
        return None
    lines = sum(len(ratios) + 1 for _, ratios in groups)
    figure = Figure(figsize=(8, 0.22 * lines + 1))
    axes = figure.subplots()
    position, ticks = 0.0, []
    labelled: set[str] = set()
    for entry, ratios in groups:
        ticks.append(
            (position + (len(ratios) - 1) / 2, f"{entry.subject}\n{entry.case_id}{' *' * entry.of_one_setting}")
        )
        for name, ratio in ratios.items():
            label = None if name in labelled else name.replace("_", " ")
            labelled.add(name)
            axes.barh(position, ratio, color=COLOURS.get(name, OTHER_COLOUR), label=label)
            axes.text(ratio, position, f" {ratio:.2f}", va="center", fontsize=6)
            position += 1
        position += 1
    axes.axvline(1.0, color=COLOURS[OURS])
    axes.set_yticks([tick for tick, _ in ticks], [text for _, text in ticks], fontsize=6)
    axes.set_ylim(position - 0.5, -1.5)  # the first on top
    note = " (*: measured in one only)" if any(entry.of_one_setting for entry in chosen) else ""
    axes.set_xlabel(f"time over ours (ours = 1), in the setting that flatters ours least{note}")
    axes.legend(fontsize=7)
    return figure


def _ratios(entry: Comparison) -> dict[str, float]:
    """Time over ours of everyone else."""
    ratios = {name: entry.ratio(name) for name in entry.contestants if name != OURS}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


# Of the points of each dtype, in the order of the rows.
MARKERS = "os^D"


def roofline(results: Results) -> Figure | None:
    """Rate of the adapter's necessary work against its intensity, under the measured ceilings."""
    rows = [row for entry in results.comparisons("adapter") for row in entry.shown.values() if row.limit]
    rows = [row for row in rows if row.limit and row.limit["bytes"] and row.mode == "both"]
    if not rows or not results.ceilings:
        return None
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    ceilings = results.ceilings[-1]
    intensities = [_intensity(row) for row in rows]
    dtypes = list(dict.fromkeys(str(row.case["dtype"]) for row in rows))
    markers = dict(zip(dtypes, MARKERS, strict=False))
    bandwidth = ceilings["copy_bytes_per_s"]
    knees = [ceilings["flops_per_s"][dtype] / bandwidth for dtype in dtypes]
    low, high = min(*intensities, *knees) / 2, max(intensities) * 4
    for dtype, knee in zip(dtypes, knees, strict=True):
        peak = ceilings["flops_per_s"][dtype]
        xs = [low, min(knee, high), high]
        axes.plot(xs, [min(peak, x * bandwidth) for x in xs], color="black", linewidth=0.8)
        axes.text(high, min(peak, high * bandwidth), dtype, fontsize=7, ha="right", va="bottom")
        axes.plot(high, min(peak, high * bandwidth), markers[dtype], color="black", markersize=4)
    labelled: set[str] = set()
    for row, intensity in zip(rows, intensities, strict=True):
        label = None if row.contestant in labelled else row.contestant.replace("_", " ")
        labelled.add(row.contestant)
        assert row.limit is not None
        colour = COLOURS.get(row.contestant, OTHER_COLOUR)
        marker = markers[str(row.case["dtype"])]
        axes.plot(intensity, row.limit["flops"] / row.median, marker, color=colour, label=label, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="necessary FLOP per necessary byte", ylabel="necessary FLOP per second")
    axes.legend(fontsize=7)
    return figure


def _intensity(row: Row) -> float:
    assert row.limit is not None
    return float(row.limit["flops"]) / float(row.limit["bytes"])


def curves(results: Results, variable: str, label: str) -> Figure | None:
    """Time of the adapter against one of its sizes, everything else as in the paper; one panel per dtype."""
    entries = [entry for entry in results.comparisons("adapter") if entry.mode == "both"]
    paper = {"batch": 180, "drop": 0.5, "width": 384, "adapter_dim": 128, "residual_dtype": ""}
    fixed = {name: value for name, value in paper.items() if name != variable}
    entries = [entry for entry in entries if all(entry.case[name] == value for name, value in fixed.items())]
    dtypes = [
        dtype
        for dtype in dict.fromkeys(str(entry.case["dtype"]) for entry in entries)
        if len({entry.case[variable] for entry in entries if entry.case["dtype"] == dtype}) > 1
    ]
    if not dtypes:
        return None
    figure = Figure(figsize=(4.5 * len(dtypes), 3.5))
    for axes, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False)[0], dtypes, strict=True):
        _panel(axes, [entry for entry in entries if entry.case["dtype"] == dtype], variable)
        axes.set(title=dtype, xlabel=label, ylabel="forward + backward, ms")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=6)
    return figure


def _panel(axes: Axes, entries: Iterable[Comparison], variable: str) -> None:
    lines: dict[str, list[tuple[Any, float]]] = {}
    for entry in entries:
        for name, row in entry.shown.items():
            lines.setdefault(name, []).append((entry.case[variable], row.median * 1e3))
    for name, points in lines.items():
        points.sort()
        xs, ys = zip(*points, strict=True)
        colour = COLOURS.get(name, OTHER_COLOUR)
        axes.plot(xs, ys, "o-", color=colour, label=name.replace("_", " "), markersize=3, linewidth=1)


def growth(results: Results) -> Figure | None:
    """Seconds and peak memory of the evaluation against the number of items, with the paper's class sizes."""
    entries = [entry for entry in results.comparisons("evaluation") if entry.mode == "once"]
    if len(entries) < 2:
        return None
    seconds: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        for name, row in entry.shown.items():
            seconds.setdefault(name, []).append((entry.case["items"], row.median))
    peaks: dict[str, list[tuple[int, float]]] = {}
    for found in results.memory:
        if found["subject"] == "evaluation" and found["mode"] == "once":
            peaks.setdefault(found["contestant"], []).append((found["case"]["items"], found["peak_bytes"] / 1e9))
    figure = Figure(figsize=(9, 3.5))
    panels = figure.subplots(1, 2)
    for axes, lines, label in zip(panels, (seconds, peaks), ("seconds", "GB above the embeddings"), strict=True):
        for name, points in lines.items():
            xs, ys = zip(*sorted(points), strict=True)
            thousands = [x / 1000 for x in xs]
            colour = COLOURS.get(name, OTHER_COLOUR)
            axes.plot(thousands, ys, "o-", color=colour, label=name, markersize=3, linewidth=1)
        axes.set(xlabel="thousand items (each is query and gallery item)", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.legend(fontsize=7)
    return figure
