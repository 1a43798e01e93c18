"""The common base of all datasets of image files."""

import copy
import json
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.image_reading import find_defects, read_image
from puma_plugin.datasets.image_scan import find_missing
from puma_plugin.datasets.listing import Listing
from puma_plugin.datasets.string_table import StringTable
from puma_plugin.utils.arrays import IntArray
from puma_plugin.utils.paths import full_path

SPLITS = ("train", "test", "query", "gallery")
Split = Literal["train", "test", "query", "gallery"]
BadImages = Literal["raise", "skip"]
SmallClasses = Literal["raise", "skip"]


@dataclass(frozen=True)
class SkippedImage:
    """An image that was left out, and why."""

    key: str
    reason: str


class DistributionDataset(Dataset[tuple[Any, int]]):
    """Images of one distribution and one split, read from files when an item is asked for.

    Args:
        listing: which images, with their classes.
        name: the distribution's name, used in messages.
        split: "train" or "test"; "query" and "gallery" are the two parts of a test set that has them, and the whole
            test set of one that has not. None: all images, which are not split, or not yet.
        transform: applied to the RGB image when an item is read.
        bad_images: "raise": a missing file raises here, an unreadable one when it is read. "skip": every image is
            opened once here and the missing or unreadable ones are left out, counted in ``num_skipped`` and listed in
            ``skipped``, with one warning.
        known_bad: for "skip": keys of the images to leave out, or the path of a report written by
            ``puma datasets verify --open-images``; no image is opened here then.
        min_images: images that each class must have; of a test set with queries and a gallery, each class of a query.
        small_classes: what becomes of classes with fewer. "raise": an error. "skip": their images are left out, counted
            and listed as bad ones are, with a warning of their own; so are classes of which no readable image is left.
        divide: takes the images of ``split`` out of a listing of all splits.

    Attributes:
        paths: sequence of N file paths.
        item_keys: sequence of N paths relative to the dataset's folder: the same on every machine.
        targets: int64 (N,), classes of this split numbered from 0 without gaps.
        class_names: name of each class.
        query_mask, gallery_mask: bool tensors (N,), or None where every image is both.

    Items are (RGB image or what ``transform`` makes of it, int class).

    Raises:
        DatasetError: no image, a missing file, a class with fewer than ``min_images`` images, or (when an item is read)
            an unreadable file; each names the dataset, the file and what to do.
    """

    def __init__(
        self,
        listing: Listing,
        name: str,
        split: Split | None = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        bad_images: BadImages = "raise",
        known_bad: Collection[str] | str | os.PathLike[str] | None = None,
        min_images: int = 1,
        small_classes: SmallClasses = "raise",
        divide: Callable[[Listing], Listing] | None = None,
    ) -> None:
        if small_classes not in ("raise", "skip"):
            raise ValueError(f"small_classes is {small_classes!r}; give 'raise' or 'skip'")
        if bad_images not in ("raise", "skip"):
            raise ValueError(f"bad_images is {bad_images!r}; give 'raise' or 'skip'")
        if known_bad is not None and bad_images == "raise":
            raise ValueError("known_bad is given with bad_images='raise'; pass bad_images='skip' too")
        if split is not None:
            check_split(split)
        self.name = name
        self.split = split
        self.transform = transform
        self.skipped: list[SkippedImage] = []
        self._require_images(listing)
        if divide is not None and small_classes == "raise":
            # No class goes, so there is no need to look at those of the other splits.
            listing, divide = divide(listing), None
        if bad_images == "skip":
            listing = self._leave_out_bad(listing, known_bad, small_classes)
        else:
            self._require_files(listing)
        if small_classes == "skip":
            listing = self._leave_out_small(listing, min_images)
        self._adopt(listing if divide is None else divide(listing))
        self._require_counts(min_images)

    @property
    def label(self) -> str:
        """Name and split, as messages put it."""
        return self.name if self.split is None else f"{self.name} ({self.split})"

    @property
    def num_skipped(self) -> int:
        """How many images were left out because they are missing or unreadable, or their class is too small."""
        return len(self.skipped)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = read_image(self.paths[index], self.label)
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.split!r}, {len(self):,} images, {len(self.class_names):,} classes)"

    def subset(self, indices: Sequence[int] | IntArray) -> "DistributionDataset":
        """These images only, in this order; classes are numbered anew from 0, keys stay."""
        chosen = np.asarray(indices, np.int64)
        part = copy.copy(self)
        part._adopt(self._listing.take(chosen))
        return part

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> "DistributionDataset":
        """The same images with another transform."""
        changed = copy.copy(self)
        changed.transform = transform
        return changed

    def _adopt(self, listing: Listing) -> None:
        self._listing = listing
        self.item_keys: StringTable = listing.keys
        self.paths: StringTable = listing.keys.with_prefix(os.path.join(listing.base, ""))
        self.targets: IntArray = listing.targets
        self.class_names: list[str] = listing.class_names
        self.query_mask = None if listing.is_query is None else torch.from_numpy(listing.is_query)
        self.gallery_mask = None if listing.is_gallery is None else torch.from_numpy(listing.is_gallery)

    def _require_images(self, listing: Listing) -> None:
        if len(listing) == 0:
            raise DatasetError(
                f"{self.label}: no image is listed below {listing.base}; add images, or leave this distribution out"
            )

    def _require_files(self, listing: Listing) -> None:
        if listing.scanned:
            return
        missing = find_missing(listing.base, listing.keys)
        if missing:
            first = os.path.join(listing.base, listing.keys[missing[0]])
            raise DatasetError(
                f"{self.label}: {len(missing):,} of {len(listing):,} files are missing, the first is {first}; "
                f"{listing.remedy}, or pass bad_images='skip' (--data.bad_images skip) to leave them out"
            )

    def _leave_out_small(self, listing: Listing, min_images: int) -> Listing:
        short = listing.short_classes(min_images)
        if not len(short):
            return listing
        counts = listing.counts()
        gone = np.flatnonzero(np.isin(listing.targets, short))
        for place in gone.tolist():
            number = listing.targets[place]
            reason = f"class {listing.class_names[number]!r} has {_images(counts[number])}, {min_images} are needed"
            self.skipped.append(SkippedImage(listing.keys[place], reason))
        warnings.warn(
            f"{self.label}: {len(short):,} of {len(listing.class_names):,} classes have fewer than {min_images} images "
            f"and are left out ({_images(len(gone))}), the first is {listing.class_names[short[0]]!r}; all are in "
            ".skipped",
            stacklevel=3,
        )
        if len(short) == len(listing.class_names):
            raise DatasetError(
                f"{self.label}: none of the {len(short):,} classes below {listing.base} has {_images(min_images)}; add "
                "images, or ask for fewer (--data.min_images)"
            )
        return listing.without(short)

    def _leave_out_bad(
        self,
        listing: Listing,
        known_bad: Collection[str] | str | os.PathLike[str] | None,
        small_classes: SmallClasses,
    ) -> Listing:
        if known_bad is None:
            gone = [] if listing.scanned else find_missing(listing.base, listing.keys)
            reasons = dict.fromkeys(gone, "missing")
            present = np.setdiff1d(np.arange(len(listing)), np.array(list(reasons), np.int64))
            paths = listing.keys.with_prefix(os.path.join(listing.base, "")).take(present)
            reasons |= {int(present[place]): reason for place, reason in find_defects(paths).items()}
        else:
            bad = self._read_known_bad(known_bad)
            reasons = {place: bad[key] for place, key in enumerate(listing.keys) if key in bad}
        if not reasons:
            return listing
        self.skipped = [SkippedImage(listing.keys[place], reasons[place]) for place in sorted(reasons)]
        first = self.skipped[0]
        warnings.warn(
            f"{self.label}: {self.num_skipped:,} of {len(listing):,} images are left out, the first is {first.key} "
            f"({first.reason}); all are in .skipped",
            stacklevel=3,
        )
        kept = np.setdiff1d(np.arange(len(listing)), np.array(list(reasons), np.int64))
        remaining = listing.take(kept)
        lost = sorted(set(listing.class_names) - set(remaining.class_names))
        if lost and small_classes == "raise":
            raise DatasetError(
                f"{self.label}: class {lost[0]!r} has no readable image left below {listing.base} ({len(lost):,} such "
                "classes); restore its images, remove the class, or pass small_classes='skip' (--data.small_classes "
                "skip)"
            )
        self._require_images(remaining)
        return remaining

    def _read_known_bad(self, known_bad: Collection[str] | str | os.PathLike[str]) -> dict[str, str]:
        if not isinstance(known_bad, str | os.PathLike):
            return dict.fromkeys(known_bad, "known to be bad")
        try:
            report = json.loads(Path(full_path(known_bad)).read_text())
            opened = [part for part in report["datasets"] if part["opened"]]
            # The name of a dataset is that of its folder, which a training may call otherwise.
            found = [part for part in opened if part["name"] == self.name]
            bad = {item["key"]: item["reason"] for part in found for item in (*part["missing"], *part["unreadable"])}
            names = [str(part["name"]) for part in opened]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{self.label}: {known_bad} is no report of `puma datasets verify` ({error}); write one with "
                "`puma datasets verify ROOT --open-images --report FILE`"
            ) from error
        if not found:
            raise DatasetError(
                f"{self.label}: the images of {self.name} were not opened for the report {known_bad} (only those of "
                f"{', '.join(names) or 'no dataset'}), so it does not say which are bad; write one with `puma datasets "
                "verify ROOT --open-images --report FILE`, or leave known_bad out to have them opened now"
            )
        return bad

    def _require_counts(self, min_images: int) -> None:
        short = self._listing.short_classes(min_images)
        if len(short):
            index = int(short[0])
            count = int(self._listing.counts()[index])
            first = self.paths[int(np.flatnonzero(self.targets == index)[0])]
            raise DatasetError(
                f"{self.label}: class {self.class_names[index]!r} has {_images(count)} ({first}), {min_images} are "
                f"needed ({len(short):,} such classes); add images, pass small_classes='skip' (--data.small_classes "
                f"skip) to leave such classes out, or min_images={count} if images without a partner are meant"
            )


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def check_split(split: str) -> None:
    """Raise ValueError unless ``split`` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; give one of {', '.join(SPLITS)}")
