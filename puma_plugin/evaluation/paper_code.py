"""How the authors' published code numbers classes and items in its evaluation (``protocol="paper-code"``)."""

import numpy as np

from puma_plugin.utils.arrays import IntArray


def overlapping_classes(distributions: IntArray, local: IntArray, joined_last: list[int]) -> IntArray:
    """Number the test classes as the authors do, so that some classes of different distributions share a number.

    Their joined data set adds to each class's number in its own data set the count of distinct numbers given before.
    Test classes are the last ones of a data set, so the sum passes that count, and ranges overlap: of the 15,937 test
    classes of the eight data sets 11,514 numbers remain.

    Args:
        distributions: (N,) of each item.
        local: (N,) number of the item's class in its own data set, training classes counted before.
        joined_last: distributions that are joined after all others (In-shop).

    Returns:
        (N,) the authors' class numbers.
    """
    order = sorted(np.unique(distributions).tolist(), key=lambda d: (d in joined_last, d))
    numbers = np.empty_like(local)
    given: set[int] = set()
    for d in order:
        mine = distributions == d
        numbers[mine] = local[mine] + len(given)
        given |= set(np.unique(numbers[mine]).tolist())
    return numbers


def own_numbers(classes: IntArray, distributions: IntArray, joined_last: list[int]) -> IntArray:
    """Class numbers within each data set if as many training classes stand before the test classes.

    The distributions of ``joined_last`` count their test classes from 0, as the authors do for In-shop.
    """
    local = np.empty_like(classes)
    for d in np.unique(distributions).tolist():
        mine = distributions == d
        present, counted = np.unique(classes[mine], return_inverse=True)
        local[mine] = counted + (0 if d in joined_last else len(present))
    return local


def position_keys(distributions: IntArray, chosen: IntArray) -> IntArray:
    """Key of the i-th chosen item of each distribution: equal for query i and gallery item i, distinct otherwise.

    The authors take an item's position in the joined queries or galleries for its id. In-shop, the only one whose
    queries are not its gallery, is joined last; so its query i can never match its gallery item i.
    """
    keys = np.full(len(distributions), -1, dtype=np.int64)
    for d in np.unique(distributions[chosen]).tolist():
        mine = chosen[distributions[chosen] == d]
        keys[mine] = (d << 40) + np.arange(len(mine))
    return keys
