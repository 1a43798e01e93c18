"""Intervals, recomputed by hand."""

import math

import pytest

from puma_plugin.experiments.reporting.intervals import clustered_interval, excludes_zero, paired_interval

# Two-sided 95 % quantile of Student's t with 2 degrees of freedom, from a printed table.
T_2 = 4.302653


def test_three_data_seeds_by_hand() -> None:
    # Means of the data seeds: 50, 52, 57; mean 53; deviations -3, -1, 4; variance 26 / 2 = 13.
    values = {0: [49.0, 50.0, 51.0], 1: [52.0, 52.0, 52.0], 2: [55.0, 57.0, 59.0]}
    interval = clustered_interval(values)
    half_width = T_2 * math.sqrt(13.0) / math.sqrt(3.0)
    assert interval == pytest.approx({"mean": 53.0, "low": 53.0 - half_width, "high": 53.0 + half_width}, abs=1e-4)


def test_training_seeds_do_not_count_as_independent() -> None:
    # Ten times the runs of the same data seeds must not narrow the interval.
    few = clustered_interval({0: [1.0], 1: [2.0], 2: [4.0]})
    many = clustered_interval({0: [1.0] * 10, 1: [2.0] * 10, 2: [4.0] * 10})
    assert few == many


def test_data_seeds_weigh_alike_whatever_their_runs() -> None:
    assert clustered_interval({0: [1.0, 1.0, 1.0], 1: [3.0]})["mean"] == 2.0


def test_one_data_seed_gives_no_bounds() -> None:
    interval = clustered_interval({0: [1.0, 2.0, 3.0]})
    assert interval == {"mean": 2.0, "low": None, "high": None}
    assert not excludes_zero(interval)


def test_pairing_removes_the_data_seed() -> None:
    # The data seeds differ by tens of points, the methods by exactly one.
    first = {0: [51.0, 51.0], 1: [61.0, 61.0], 2: [41.0, 41.0]}
    second = {0: [50.0], 1: [60.0], 2: [40.0]}
    interval = paired_interval(first, second)
    assert interval == pytest.approx({"mean": 1.0, "low": 1.0, "high": 1.0})
    # All data seeds differ by the same amount, which does not say that there is no chance in it.
    assert not excludes_zero(interval)


def test_pairing_takes_common_data_seeds_only() -> None:
    assert paired_interval({0: [3.0], 5: [100.0]}, {0: [1.0], 7: [-100.0]})["mean"] == 2.0


def test_interval_around_zero_is_not_resolved() -> None:
    assert not excludes_zero(paired_interval({0: [1.0], 1: [-1.0]}, {0: [0.0], 1: [0.0]}))
    assert excludes_zero(clustered_interval({0: [-5.0], 1: [-5.1], 2: [-4.9]}))
    for low, high in ((0.0, 1.0), (-1.0, 0.0)):
        assert not excludes_zero({"low": low, "high": high})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clustered_interval({}), "no run"),
        (lambda: clustered_interval({0: []}), "no run"),
        (lambda: paired_interval({0: [1.0]}, {1: [1.0]}), "no data seed in common"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
