"""The order in which the items of a class come up: another one in every pass, and a function of the seed."""

from collections import Counter

import numpy as np

from puma_plugin.samplers.class_items import ClassItems

# Two classes of eight items and one of three, none of them in one piece.
CLASSES = np.array([0, 1, 2] * 3 + [0, 1] * 5)


def one_pass(items: ClassItems, label: int, number: int, m: int) -> list[int]:
    """The items of a class in the order of its pass ``number``."""
    uses = -(-int((label == CLASSES).sum()) // m)
    groups = [items.groups(np.array([label]), np.array([number * uses + use])) for use in range(uses)]
    return np.concatenate(groups, axis=1)[0].tolist()


def test_every_pass_every_class_and_every_seed_has_an_order_of_its_own() -> None:
    orders = {
        (seed, label, number): one_pass(ClassItems(CLASSES, 2, seed), label, number, 2)
        for seed in range(3)
        for label in range(2)
        for number in range(4)
    }
    for (_, label, _), order in orders.items():
        assert sorted(order) == np.flatnonzero(label == CLASSES).tolist()
    # Among the items of its class; of 40,320 orders.
    ranks = {tuple(np.searchsorted(np.flatnonzero(key[1] == CLASSES), order)) for key, order in orders.items()}
    assert len(ranks) == len(orders)


def test_a_use_is_the_same_whatever_came_before() -> None:
    items, again = ClassItems(CLASSES, 2, seed=5), ClassItems(CLASSES, 2, seed=5)
    forward = [one_pass(items, 0, number, 2) for number in range(4)]
    both = items.groups(np.array([1, 0]), np.array([9, 6]))
    assert [one_pass(again, 0, number, 2) for number in (3, 0, 2, 1)] == [forward[number] for number in (3, 0, 2, 1)]
    assert both[1].tolist() == forward[1][4:6]
    assert both[0].tolist() == one_pass(again, 1, 2, 2)[2:4]


def test_all_orders_are_equally_likely() -> None:
    items = ClassItems(CLASSES, 1, seed=0)
    counts = Counter(tuple(one_pass(items, 2, number, 1)) for number in range(1200))
    # Five standard deviations of 1,200 draws of six orders.
    assert len(counts) == 6
    assert all(abs(count - 200) < 65 for count in counts.values())
