"""Class-disjoint splits of a distribution that has none of its own."""

import math

import numpy as np

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.listing import Listing


def split_by_class(listing: Listing, test_fraction: float, train: bool, dataset: str) -> Listing:
    """The first classes to train, the last ``ceil(test_fraction x classes)`` (never all) to test.

    Args:
        test_fraction: share of the classes that test, in (0, 1).
        dataset: how error messages call the dataset.

    Raises:
        ValueError: ``test_fraction`` outside (0, 1).
        DatasetError: fewer than two classes.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction is {test_fraction}; it must be in (0, 1)")
    count = len(listing.class_names)
    if count < 2:
        raise DatasetError(
            f"{dataset}: a class-disjoint split needs two classes, {listing.base} has {count} "
            f"({', '.join(listing.class_names)}); add classes, or lay out train and test yourself"
        )
    first = count - min(max(1, math.ceil(test_fraction * count - 1e-9)), count - 1)
    return listing.take(np.flatnonzero(listing.targets < first if train else listing.targets >= first))
