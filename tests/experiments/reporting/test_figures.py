"""Charts: axes that can be read, names in any script."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from puma_plugin.experiments.reporting.figures import map_chart, pareto_chart, write_pareto

ROWS = [
    {"label": "凍結", "mean": 27.0, "low": None, "high": None, "trainable": 0, "seconds": 0, "accent": False},
    {"label": "Linear", "mean": 28.6, "low": 27.1, "high": 30, "trainable": 16512, "seconds": 7.9, "accent": False},
    {"label": "PUMA", "mean": 31, "low": 30, "high": 32, "trainable": 120960, "seconds": 8.2, "accent": True},
]


@pytest.mark.parametrize(
    ("seconds", "labels"), [((7.9, 8.2), ["7.9", "8.2"]), ((5, 40000), ["10", "100", "1k", "10k"])]
)
def test_costs_have_round_numbers_that_do_not_overlap(
    tmp_path: Path, seconds: tuple[float, float], labels: list[str]
) -> None:
    rows = [ROWS[0], *({**row, "seconds": value} for row, value in zip(ROWS[1:], seconds, strict=True))]
    write_pareto(tmp_path / "pareto.svg", rows)
    text = (tmp_path / "pareto.svg").read_text(encoding="utf-8")
    for label in ("20k", "50k", "100k", *labels):
        assert f">{label}</text>" in text
    assert "10^" not in text
    assert "\N{MULTIPLICATION SIGN}" not in text


def test_names_are_no_formulas() -> None:
    """Where matplotlib saw one, a finished training ended with an error of its parser."""
    rows = [ROWS[0], {**ROWS[1], "label": "$a_$b"}, {**ROWS[2], "label": r"$\foo$"}]
    chart = pareto_chart(rows)
    assert "$a_$b" in chart
    assert r"$\foo$" in chart


def test_many_distributions_can_be_told_apart() -> None:
    names = ["_hidden", *(f"d{index}" for index in range(49))]
    points = np.random.default_rng(0).random((100, 2))
    chart = map_chart("x", points, np.arange(100) % 50, names)
    assert "_hidden" in chart
    marks = re.findall(r'<use href="#([^"]*)"[^>]*style="fill: (#\w+)', chart)
    assert len(set(marks)) == 2 * 50  # those of the map, and the larger ones of the legend


def test_letters_that_matplotlibs_font_has_not() -> None:
    """They stay text, for the font of whoever looks at the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "凍結" in pareto_chart(ROWS)
