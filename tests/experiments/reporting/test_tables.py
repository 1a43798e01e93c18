"""Figures in words of a few characters, and the main table as Markdown."""

import pytest

from puma_plugin.experiments.reporting.tables import COLUMNS, count, figure, markdown_table, percent


def test_nothing_is_no_zero() -> None:
    assert [percent(None), percent(0.0), percent(0.1234)] == ["-", "0.0", "12.3"]
    assert [count(None), count(0)] == ["-", "0"]
    assert figure(None) == figure({"mean": None}) == "-"


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1000, "1.0 k"), (999_900, "999.9 k"), (1_000_000, "1.00 M")]
)
def test_numbers_of_weights(number: int, text: str) -> None:
    assert count(number) == text


def test_a_mean_has_half_the_width_of_its_interval() -> None:
    assert figure({"mean": 0.1, "low": 0.0, "high": 0.2}) == "10.0 ± 10.0"
    assert figure({"mean": 0.1, "low": 0.05, "high": 0.15}, "+-") == "10.0+-5.0"
    assert figure({"mean": 0.1, "low": None, "high": None}) == "10.0"


def test_markdown() -> None:
    scores = {name: {"mean": 0.5, "low": 0.4, "high": 0.6} for name in COLUMNS}
    row = {"label": "PUMA | a", "scores": {**scores, "leak": None}, "trainable": 1234, "seconds": 5.6, "runs": 9}
    head, rule, line = markdown_table([row]).splitlines()
    assert head == "| method | harmonic | unified | worst | leak | trained weights | seconds | runs |"
    assert rule.count("---") == 8
    assert line == "| PUMA \\| a | 50.0 ± 10.0 | 50.0 ± 10.0 | 50.0 ± 10.0 | - | 1,234 | 6 | 9 |"
