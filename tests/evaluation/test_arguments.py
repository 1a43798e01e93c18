"""What an evaluation is given is checked before anything is computed; the limits themselves are allowed."""

from typing import Any

import numpy as np
import pytest

from puma_plugin.evaluation.arguments import as_column, check_block_size, check_ks, names_by_number


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([0, 1], np.bool_, r"query_mask must be booleans of shape \(2,\), got int64"),
        ([0.0, 1.0], np.int64, r"query_mask must be integers of shape \(2,\), got float64"),
    ],
)
def test_refused_columns(values: list[float], dtype: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_column(values, 2, "query_mask", dtype, None)


def test_ks_are_sorted_and_count_once_each() -> None:
    assert check_ks([4, 1, 4], "ks") == (1, 4)
    with pytest.raises(ValueError, match=r"ks must hold integers >= 1, got \(\)"):
        check_ks([], "ks")


def test_the_smallest_block_is_one() -> None:
    check_block_size(1)


def test_every_distribution_has_a_name_of_its_own() -> None:
    assert names_by_number(["a", "b"], np.array([0, 1])) == {0: "a", 1: "b"}
    assert names_by_number(None, np.array([0, 3])) == {0: "distribution 0", 3: "distribution 3"}
    with pytest.raises(ValueError, match="distribution 2, but there are 2 distribution_names"):
        names_by_number(["a", "b"], np.array([0, 2]))
    with pytest.raises(ValueError, match="must be distinct"):
        names_by_number(["a", "a"], np.array([0, 1]))


@pytest.mark.parametrize("names", ["cub", {0: "cub", 1: "cars"}])
def test_distribution_names_are_a_list(names: Any) -> None:
    with pytest.raises(TypeError, match=r'must be a list of names such as \["birds", "cars"\], got'):
        names_by_number(names, np.array([0, 1]))
    assert names_by_number([2019, "cars"], np.array([0, 1])) == {0: 2019, 1: "cars"}  # type: ignore[list-item, comparison-overlap]
