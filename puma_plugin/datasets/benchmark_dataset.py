"""What the eight datasets of the unified benchmark have in common: finding the folder, splitting, checking counts."""

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from puma_plugin.datasets.catalogue import Facts
from puma_plugin.datasets.distribution_dataset import BadImages, DistributionDataset, Split, check_split
from puma_plugin.datasets.errors import DatasetError, DatasetNotFoundError
from puma_plugin.datasets.image_scan import lost_link
from puma_plugin.datasets.listing import Listing
from puma_plugin.datasets.whereabouts import whereabouts
from puma_plugin.utils.paths import full_path


@dataclass(frozen=True)
class Layout:
    """One way the dataset lies on disk.

    Attributes:
        name: what to call it.
        folders: names that the dataset's folder may have.
        required: files and folders that must be in it.
        images: folders in it that hold the images.
        fixed_name: the folder itself must have one of the names in ``folders``, whatever it is reached by.
        elsewhere: further places in the folder where an entry of ``required`` may lie.
        labels_from: what to do where the images are there and the annotations are not.
        first_line: where another dataset has files of the same names, one that tells them apart, and a regular
            expression for its first line. Only folders whose name says nothing are told by it.
    """

    name: str
    folders: tuple[str, ...]
    required: tuple[str, ...]
    images: tuple[str, ...]
    fixed_name: bool = False
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    labels_from: str = ""
    first_line: tuple[str, str] | None = None

    def find(self, folder: str, entry: str) -> str | None:
        """The path of an entry of ``required``; None if it is not there."""
        places = (os.path.join(folder, place) for place in (entry, *self.elsewhere.get(entry, ())))
        return next((place for place in places if os.path.exists(place)), None)

    def absent(self, folder: str) -> list[str]:
        """What the layout needs and the folder lacks."""
        return [entry for entry in self.required if self.find(folder, entry) is None]

    def lacks_images(self, folder: str) -> bool:
        """Whether a folder of images is not there."""
        return not all(os.path.isdir(os.path.join(folder, name)) for name in self.images)

    def begins_otherwise(self, folder: str) -> str | None:
        """How the file begins that tells datasets apart, unless that is as it must be or there is no such file."""
        if self.first_line is None:
            return None
        file, pattern = self.first_line
        try:
            with open(os.path.join(folder, file), encoding="utf-8", errors="replace") as lines:
                line = lines.readline(1000).rstrip()
        except OSError:
            return None
        return None if re.fullmatch(pattern, line) else f"{file} begins with {line!r}"


@dataclass(frozen=True)
class Location:
    """A dataset found on disk: its folder and the layout it has."""

    folder: str
    layout: Layout


class BenchmarkDataset(DistributionDataset):
    """One dataset of the unified benchmark.

    Args:
        root: the folder that holds the dataset's folder, or that folder itself.
        split: "train": the first classes; "test": the others. "query" and "gallery" equal "test", except for InShop.
        transform, bad_images, known_bad: see :class:`DistributionDataset`.
        check_counts: compare the number of classes with the published one. False: for a reduced copy.

    Attributes:
        location: folder and layout found.

    Raises:
        DatasetError: the dataset is not found, a file is missing or cannot be parsed, or the class count is wrong.
    """

    recall_ks: ClassVar[tuple[int, ...]] = ()  # which recalls are reported beside the usual k = 1, 2, 4, 8
    facts: ClassVar[Facts]
    layouts: ClassVar[tuple[Layout, ...]]
    # Splits with a list of their own; the others are made of them.
    own_splits: ClassVar[tuple[Split, ...]] = ("train", "test")

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: Split = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        bad_images: BadImages = "raise",
        known_bad: Collection[str] | str | os.PathLike[str] | None = None,
        check_counts: bool = True,
    ) -> None:
        check_split(split)
        self.location = self.locate(root)
        listing = self.list_images(self.location, split)
        if check_counts:
            self._require_published(listing, split)
        super().__init__(listing, self.facts.name, split, transform, bad_images, known_bad)

    @classmethod
    @abstractmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """Read the annotation files; no image is touched and no count compared.

        Raises:
            DatasetError: a file is missing or cannot be parsed.
        """

    @classmethod
    def locate(cls, root: str | os.PathLike[str]) -> Location:
        """Find the dataset in ``root`` or in the folders of it that carry one of the known names.

        Raises:
            DatasetNotFoundError: saying what was looked for.
            DatasetError: its folder is there and lacks something, or is a link to one that does not exist.
        """
        root = full_path(root)
        places = list(cls._places(root))
        for folder, layout in places:
            if not layout.absent(folder):
                return Location(folder, layout)
        title = cls.facts.name
        if not os.path.isdir(root):
            raise DatasetNotFoundError(f"{title}: {root} is no folder; give the folder that holds the datasets")
        named = (os.path.join(root, name) for layout in cls.layouts for name in layout.folders)
        if lost := next(filter(None, map(lost_link, named)), None):
            raise DatasetError(f"{title}: {lost}")
        cls._refuse_unclear(root)
        hint = whereabouts(root, cls.layouts, cls.facts.source, cls._is_foreign)
        meant = [
            (layout.lacks_images(folder), len(layout.absent(folder)), folder, layout)
            for folder, layout in places
            if os.path.basename(folder) in layout.folders or _told_by_images(folder, layout)
        ]
        if meant:
            # Several layouts may share a name; the images say which of them it is.
            without_images, _, folder, layout = min(meant, key=lambda place: place[:2])
            lacking = ", ".join(layout.absent(folder))
            # Annotations are often files of their own beside the archive of the images.
            labels_from = "" if without_images else layout.labels_from
            advice = hint or labels_from or "get what the archive does not hold, or unpack the archive again"
            raise DatasetError(f"{title}: {folder} lacks {lacking}; {advice}:\n{cls.facts.how_to_get()}")
        names = ", ".join(dict.fromkeys(name for layout in cls.layouts for name in layout.folders))
        raise DatasetNotFoundError(
            f"{title}: not found in {root} (looked for folders called {names}); {hint or 'put it there'}:\n"
            f"{cls.facts.how_to_get()}",
            hint,
        )

    @classmethod
    def _places(cls, root: str) -> Iterator[tuple[str, Layout]]:
        for layout in cls.layouts:
            for name in layout.folders:
                folder = os.path.join(root, name)
                if os.path.isdir(folder):
                    yield folder, layout
            if os.path.basename(root) in layout.folders or not (layout.fixed_name or cls._is_foreign(root, layout)):
                yield root, layout

    @classmethod
    def _is_foreign(cls, folder: str, layout: Layout) -> bool:
        """Whether the folder has another dataset's name or lists: those of CUB and NABirds are called the same."""
        if cls._has_name_of_another(folder):
            return True
        return os.path.basename(folder) not in layout.folders and layout.begins_otherwise(folder) is not None

    @classmethod
    def _has_name_of_another(cls, folder: str) -> bool:
        return any(os.path.basename(folder) in other.folders for other in cls._layouts_of_others())

    @classmethod
    def _layouts_of_others(cls) -> list[Layout]:
        return [layout for other in BenchmarkDataset.__subclasses__() if other is not cls for layout in other.layouts]

    @classmethod
    def _refuse_unclear(cls, root: str) -> None:
        """DatasetError where ``root`` holds files as this dataset's, and neither its name nor they say whose."""
        if cls._has_name_of_another(root):
            return
        for layout in cls.layouts:
            fitting = [
                other
                for other in (layout, *cls._layouts_of_others())
                if other.first_line is not None and not other.absent(root)
            ]
            if layout in fitting and all(other.begins_otherwise(root) is not None for other in fitting):
                raise DatasetError(
                    f"{cls.facts.name}: {root} holds files as of {', '.join(other.folders[0] for other in fitting)}, "
                    f"but its {layout.begins_otherwise(root)}, as in none of them; rename the folder to say which it is"
                )

    @property
    def first_class(self) -> int:
        """How many published classes are numbered before those of this split: none, or the training classes."""
        return 0 if self.split == "train" else self.facts.splits["train"].classes

    @classmethod
    def published(cls, split: Split) -> int | None:
        """The published number of classes of a split, or None where it is not certain."""
        counts = cls.facts.splits.get(split) or cls.facts.splits.get("test")
        return counts.classes if counts is not None and counts.certain else None

    def _require_published(self, listing: Listing, split: Split) -> None:
        expected = self.published(split)
        found = len(listing.class_names)
        if expected is not None and found != expected:
            raise DatasetError(
                f"{self.facts.name} ({split}): {found:,} classes are listed in {self.location.folder}, {expected:,} "
                "are published; unpack the archive again, or pass check_counts=False (--data.check_counts false) for a "
                "reduced copy"
            )


def _told_by_images(folder: str, layout: Layout) -> bool:
    """Whether the images alone say what is in a folder of any name; a single one called "images" does not."""
    return len(layout.images) > 1 and not layout.lacks_images(folder)


def first_classes(listing: Listing, classes: np.ndarray, facts: Facts, split: Split) -> Listing:
    """The images of the first classes for "train", of the others for any other split.

    Args:
        classes: (N,) class of each image of ``listing``, counted from 0 in the published order.
        facts: the dataset's; they tell how many classes are for training.
    """
    first = facts.splits["train"].classes
    chosen = classes < first if split == "train" else classes >= first
    return listing.take(np.flatnonzero(chosen))
