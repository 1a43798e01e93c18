"""Which classes train and which test."""

import numpy as np
import pytest
import torch

from puma_plugin.datasets.class_split import divide_classes, shared_classes, split_by_class
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.listing import Listing


@pytest.mark.parametrize(
    ("classes", "fraction", "taken"), [(10, 0.1, 2), (12, 0.2, 3), (320, 0.1, 32), (4, 0.9, 2), (5, 0.01, 2)]
)
def test_size_of_the_taken_part(classes: int, fraction: float, taken: int) -> None:
    kept, last = divide_classes(classes, fraction, least=2)
    assert kept.tolist() == list(range(classes - taken))
    assert last.tolist() == list(range(classes - taken, classes))


def test_a_generator_draws_the_taken_classes() -> None:
    first, again, other = (divide_classes(20, 0.3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first[1].tolist() == again[1].tolist() != other[1].tolist()
    assert sorted([*first[0], *first[1]]) == list(range(20))
    assert first[1].tolist() == sorted(first[1])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="needs 4 classes, 2 for each part, there are 3"):
        divide_classes(3, 0.5, least=2)
    listing = Listing.build("/data/cats", ["a.jpg", "b.jpg"], [0, 0], ["x"])
    for fraction in (0, 1):
        with pytest.raises(ValueError, match=f"^test_fraction is {fraction}; it must be in"):
            divide_classes(10, fraction)
        with pytest.raises(ValueError, match=f"^test_fraction is {fraction}; it must be in"):
            split_by_class(listing, fraction, True, "cats (train)")
    with pytest.raises(DatasetError, match=r"cats \(train\): .* there are 1 in /data/cats \(x\); add classes"):
        split_by_class(listing, 0.5, True, "cats (train)")


@pytest.mark.parametrize(
    ("test", "found"),
    [
        (["c"], None),
        (["c", "b"], "1 class trains and is in the test, the first is 'b'; "),
        (["b", "c", "a"], "2 classes train and are in the test, the first is 'a'; "),
    ],
)
def test_classes_that_both_train_and_test_are_told(test: list[str], found: str | None) -> None:
    sentence = shared_classes(["a", "b", "d"], test)
    assert sentence is None if found is None else sentence is not None and sentence.startswith(found)


def test_images_follow_their_classes() -> None:
    listing = Listing.build("/data", list("abcdefgh"), np.array([3, 0, 1, 2, 3, 2, 1, 0]), list("wxyz"))
    train, test = (split_by_class(listing, 0.5, train, "mine") for train in (True, False))
    assert (list(train.keys), train.class_names, train.targets.tolist()) == (list("bcgh"), ["w", "x"], [0, 1, 1, 0])
    assert (list(test.keys), test.class_names, test.targets.tolist()) == (list("adef"), ["y", "z"], [1, 0, 1, 0])
