"""Charts: axes that can be read, names in any script."""

import warnings
from pathlib import Path

import pytest

from puma_plugin.experiments.figures import pareto_chart, write_pareto

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
    assert "×" not in text


def test_letters_that_matplotlibs_font_has_not() -> None:
    """They stay text, for the font of whoever looks at the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "凍結" in pareto_chart(ROWS)
