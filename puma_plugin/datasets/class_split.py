"""Class-disjoint splits of a distribution that has none of its own."""

import hashlib
import math
from collections.abc import Collection

import numpy as np
import torch

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.listing import Listing
from puma_plugin.utils.arrays import IntArray

HELD_OUT = "held out"
"""The purpose of what is drawn of the training classes, see :func:`generator_of`."""


def share(fraction: float, count: int) -> int:
    """ceil(fraction x count), safe from rounding (0.1 x 10 is 1)."""
    return math.ceil(fraction * count - 1e-9)


def divide_classes(
    count: int, fraction: float, generator: torch.Generator | None = None, least: int = 1
) -> tuple[IntArray, IntArray]:
    """Divide classes 0..count-1 into (kept, taken), each in rising order.

    Args:
        count: number of classes.
        fraction: ``taken`` gets ceil(fraction x count) classes.
        generator: draws the taken classes; without one they are the last.
        least: classes that either part gets at least.

    Raises:
        ValueError: ``fraction`` outside (0, 1), or too few classes.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"test_fraction is {fraction}; it must be in (0, 1)")
    if count < 2 * least:
        raise ValueError(f"a class-disjoint split needs {2 * least} classes, {least} for each part, there are {count}")
    order = np.arange(count) if generator is None else torch.randperm(count, generator=generator).numpy()
    kept = count - min(max(least, share(fraction, count)), count - least)
    return np.sort(order[:kept]), np.sort(order[kept:])


def generator_of(name: str, seed: int, purpose: str) -> torch.Generator:
    """Random numbers of a distribution's own: what they draw is the same whatever else is read."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode(errors="surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def shared_classes(train: Collection[str], test: Collection[str]) -> str | None:
    """A sentence on class names that both train and test; None without any."""
    both = sorted(set(train) & set(test))
    if not both:
        return None
    many = f"{len(both):,} classes train" if len(both) > 1 else "1 class trains"
    return (
        f"{many} and {'are' if len(both) > 1 else 'is'} in the test, the first is {both[0]!r}; figures that tell of "
        "new classes need a test of other classes"
    )


def split_by_class(listing: Listing, test_fraction: float, train: bool, dataset: str) -> Listing:
    """The first classes to train, the last to test, see :func:`divide_classes`.

    Args:
        test_fraction: share of the classes that test, in (0, 1).
        dataset: how error messages call the dataset.

    Raises:
        ValueError: ``test_fraction`` outside (0, 1).
        DatasetError: fewer than two classes.
    """
    try:
        kept, taken = divide_classes(len(listing.class_names), test_fraction)
    except ValueError as error:
        if not 0.0 < test_fraction < 1.0:
            raise
        raise DatasetError(
            f"{dataset}: {error} in {listing.base} ({', '.join(listing.class_names)}); add classes, or lay out train "
            "and test yourself"
        ) from error
    return listing.take(np.flatnonzero(np.isin(listing.targets, kept if train else taken)))
