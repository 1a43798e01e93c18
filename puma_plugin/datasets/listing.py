"""What a dataset's annotation files say, before any image is opened."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from puma_plugin.datasets.string_table import StringTable
from puma_plugin.utils.arrays import BoolArray, IntArray


@dataclass(frozen=True)
class Listing:
    """The images of one split.

    Attributes:
        base: folder that the keys are relative to.
        keys: (N) paths below ``base`` with forward slashes; they identify an image on every machine.
        targets: int64 (N,), classes numbered from 0 without gaps.
        class_names: one per class.
        is_query: bool (N,): False for images that are only searched among. None: every image is a query.
        is_gallery: bool (N,): False for images that are only searched for. None: every image is searched among.
        scanned: the keys were found on disk, not read from a list, so that no file can be missing.
        remedy: what messages advise where files are missing.
    """

    base: str
    keys: StringTable
    targets: IntArray
    class_names: list[str]
    is_query: BoolArray | None = None
    is_gallery: BoolArray | None = None
    scanned: bool = False
    remedy: str = "unpack or copy the images again"

    @classmethod
    def build(
        cls, base: str, keys: Sequence[str], classes: ArrayLike, names: Mapping[int, str] | Sequence[str]
    ) -> "Listing":
        """Number the classes that occur from 0, in the order of their published numbers.

        Args:
            classes: (N,) published class numbers, with gaps allowed.
            names: name of each published number. A name that two classes share gets the number appended.
        """
        numbers = np.asarray(classes, np.int64).reshape(-1)
        present, targets = np.unique(numbers, return_inverse=True)
        found = [names[number] for number in present.tolist()]
        uses = Counter(found)
        unique = [
            f"{name} ({number})" if uses[name] > 1 else name
            for name, number in zip(found, present.tolist(), strict=True)
        ]
        return cls(base, StringTable(keys), targets.reshape(-1).astype(np.int64), unique)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: IntArray) -> "Listing":
        """These images only, in this order; classes without an image disappear and the rest are numbered anew."""
        present, targets = np.unique(self.targets[indices], return_inverse=True)
        return replace(
            self,
            keys=self.keys.take(indices),
            targets=targets.reshape(-1).astype(np.int64),
            class_names=[self.class_names[number] for number in present.tolist()],
            is_query=None if self.is_query is None else self.is_query[indices],
            is_gallery=None if self.is_gallery is None else self.is_gallery[indices],
        )

    def without(self, classes: IntArray) -> "Listing":
        """All images but those of these classes."""
        return self.take(np.flatnonzero(~np.isin(self.targets, classes)))

    def counts(self) -> IntArray:
        """Images of each class."""
        return np.bincount(self.targets, minlength=len(self.class_names))

    def short_classes(self, least: int) -> IntArray:
        """Classes with fewer than ``least`` images; classes that are only searched among may have any number."""
        asked = self.targets if self.is_query is None else self.targets[self.is_query]
        return np.flatnonzero((self.counts() < least) & np.isin(np.arange(len(self.class_names)), asked))


@dataclass(frozen=True)
class SplitListing:
    """The images of a split as its dataset lists them.

    Attributes:
        listing: the images; with ``divide`` those of all splits.
        divide: takes the classes of the split out of a listing of all; None where there is nothing to divide. Classes
            that are to be left out go first: they have no say in how the others are divided.
        one_part: only a query or only a gallery part, whose classes may have any number of images.
    """

    listing: Listing
    divide: Callable[[Listing], Listing] | None = None
    one_part: bool = False


def join(parts: Sequence[Listing]) -> Listing:
    """One listing of several of one base. Classes are matched by name."""
    names = sorted({name for part in parts for name in part.class_names})
    place = {name: number for number, name in enumerate(names)}
    targets = [np.array([place[name] for name in part.class_names], np.int64)[part.targets] for part in parts]
    keys = StringTable(key for part in parts for key in part.keys)
    scanned = all(part.scanned for part in parts)
    return Listing(parts[0].base, keys, np.concatenate(targets), names, scanned=scanned)


def merge_query_gallery(query: Listing, gallery: Listing) -> Listing:
    """One listing of both, with the masks that say which is which. Classes are matched by name."""
    is_query = np.arange(len(query) + len(gallery)) < len(query)
    return replace(join([query, gallery]), is_query=is_query, is_gallery=~is_query)
