"""From a data configuration to training, held-out and test images of every distribution."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np

from puma_plugin.datasets import DatasetError, DistributionDataset, draw_few_shot, read_few_shot
from puma_plugin.datasets.class_split import HELD_OUT, divide_classes, generator_of, share
from puma_plugin.datasets.embedded import EmbeddedBenchmark, load_embedded, starve
from puma_plugin.datasets.embedded.benchmark import Domain
from puma_plugin.datasets.errors import told_together
from puma_plugin.datasets.image_reading import find_defects
from puma_plugin.experiments.data.images import ImageSet, describe, select_classes, split_classes
from puma_plugin.experiments.data.sources import Source, open_sources
from puma_plugin.experiments.settings.config import DataConfig

ImageSets = dict[str, ImageSet]
Skipped = dict[str, dict[str, str]]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Splits:
    """Images per distribution: to train on, held-out training classes (may be empty), and the test.

    Attributes:
        train, validation, test: distribution -> images.
        skipped: distribution -> image -> why it was left out; only distributions that have such images.
    """

    train: ImageSets
    validation: ImageSets
    test: ImageSets
    skipped: Skipped = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The distributions in their fixed order."""
        return list(self.test)

    def only(self, name: str) -> "Splits":
        """The splits of a single distribution."""
        parts = (self.train, self.validation, self.test)
        train, validation, test = ({name: sets[name]} if name in sets else {} for sets in parts)
        return Splits(train, validation, test)

    def describe(self) -> dict[str, dict[str, dict[str, int]]]:
        """Classes and images of every part."""
        return {
            name: {
                part: describe(sets[name])
                for part, sets in (("train", self.train), ("validation", self.validation), ("test", self.test))
                if name in sets
            }
            for name in self.names
        }


def load_test(config: DataConfig) -> Splits:
    """Only the test images, for an evaluation; here `split: all` takes every class.

    Raises:
        ValueError: naming the distribution and what is wrong with its folder.
    """
    if config.kind == "embedded":
        return Splits({}, {}, dict(_embedded(config.seed, config.domain).test))
    skipped: Skipped = {}
    test = _read_each(open_sources(config), lambda source: _read_test(source, config, skipped))
    return Splits({}, {}, test, skipped)


def load_splits(config: DataConfig) -> Splits:
    """Read or generate the images.

    Held-out training classes are drawn with `config.seed` and keep all their images, for a figure with less noise;
    few-shot and starving act on the classes that are trained on. A distribution whose share would be less than two
    classes, or none of two images, holds out none. In the tuning domain the test classes are the held-out ones.

    Raises:
        ValueError: naming the distribution and what is wrong with its folder.
    """
    if config.split == "all":
        raise ValueError("data.split is all, which leaves nothing to train on; give auto, folders or classes")
    skipped: Skipped = {}
    train: ImageSets
    test: ImageSets
    if config.kind == "embedded":
        whole = _embedded(config.seed, config.domain)
        train, test = dict(whole.train), dict(whole.test)
        trained_on = _few_shot(starve(whole.train) if config.starved else train, config)
    else:
        both = _read_each(open_sources(config), lambda source: _read_both(source, config, skipped))
        train, test = ({name: parts[place] for name, parts in both.items()} for place in (0, 1))
        trained_on = _few_shot(train, config)
    validation: ImageSets = {}
    if config.domain == "tuning":
        validation = test
    elif config.validation_fraction > 0:
        for name, images in train.items():
            count = len(images.class_names)
            if 2 <= share(config.validation_fraction, count) <= count - 2:
                drawn = generator_of(name, config.seed, HELD_OUT)
                kept, held_out = divide_classes(count, config.validation_fraction, drawn, least=2)
                judges = select_classes(images, held_out)
                if not _has_partners(judges):
                    continue
                validation[name] = judges
                trained_on[name] = select_classes(trained_on[name], kept)
    return Splits(trained_on, validation, test, skipped)


def check_readable(
    splits: Splits, progress: Callable[[int, int], None] | None = None, opened: set[str] | None = None
) -> None:
    """Decode the held-out and test images once, so that an unreadable one ends a run before the training, not after it.

    The images that are trained on are left to the training, which reads them from its first step on.

    Args:
        progress: called now and then with the number of images done and that of all.
        opened: paths that were looked at before and are left out; those of this call are added.

    Raises:
        DatasetError: naming the distributions, how many of their images cannot be read, and the first of each.
    """
    read_later = {
        images: [path for path in images.paths if path not in opened] if opened else images.paths
        for sets in (splits.validation, splits.test)
        for images in sets.values()
        if isinstance(images, DistributionDataset)
    }
    total, done, faults = sum(map(len, read_later.values())), 0, []
    for images, paths in read_later.items():

        def show(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        defects = find_defects(paths, progress=show)
        done += len(paths)
        if opened is not None:
            opened.update(paths)
        if defects:
            first = min(defects)
            faults.append(
                f"{images.label}: {len(defects):,} of {len(images):,} images to be tested on cannot be read, the first "
                f"is {paths[first]} ({defects[first]})"
            )
    if faults:
        advice = "replace the files, or pass bad_images='skip' (--data.bad_images skip) to leave such images out"
        raise DatasetError("\n".join((*faults, advice)))


def _read_each(sources: list[Source], read: Callable[[Source], Read]) -> dict[str, Read]:
    """What `read` gives for every source; all that is wrong with any of them is said at once."""
    found, faults = {}, []
    for source in sources:
        try:
            found[source.name] = read(source)
        except DatasetError as error:
            faults.append(str(error))
    if faults:
        # Every fault of the benchmark ends with the same advice.
        endings = {fault.splitlines()[-1] for fault in faults if "\n" in fault}
        raise DatasetError(told_together(faults, endings.pop() if len(endings) == 1 else ""))
    return found


@lru_cache(maxsize=2)
def _embedded(seed: int, domain: Domain) -> EmbeddedBenchmark:
    return load_embedded(seed, starved=False, domain=domain)


def _few_shot(train: Mapping[str, ImageSet], config: DataConfig) -> ImageSets:
    """The images of the split file, or those drawn with data.seed; all of them where neither is asked for."""
    if config.few_shot is not None:
        split = read_few_shot(config.few_shot)
        if config.shots is not None and config.shots != split.shots:
            raise ValueError(
                f"data.shots is {config.shots}, but the split {config.few_shot} has {split.shots} images per class; "
                "leave data.shots out, or give the file of this number"
            )
    elif config.shots is not None:
        split = draw_few_shot(train, config.shots, config.seed)
    else:
        return dict(train)
    return {name: split.apply(name, images) for name, images in train.items()}


def _read_both(source: Source, config: DataConfig, skipped: Skipped) -> tuple[ImageSet, ImageSet]:
    if _uses_own_split(source, config):
        train, test = source.read_part("train"), source.read_part("test")
        _note_skipped(skipped, source.name, train, test)
        _check_test(source.name, test)
        return train, test
    kept, taken = _read_divided(source, config, skipped)
    _check_test(source.name, taken)
    return kept, taken


def _read_test(source: Source, config: DataConfig, skipped: Skipped) -> ImageSet:
    test: ImageSet
    if config.split == "all":
        test = _read_whole(source, config, skipped)
    elif _uses_own_split(source, config):
        own = source.read_part("test")
        _note_skipped(skipped, source.name, own)
        test = own
    else:
        test = _read_divided(source, config, skipped)[1]
    _check_test(source.name, test)
    return test


def _uses_own_split(source: Source, config: DataConfig) -> bool:
    if config.split == "folders" and not source.has_split:
        lacks = "does not hold train/ and test/" if os.path.isdir(source.place) else "has no column split"
        raise ValueError(f"data.split is folders, but {source.place} {lacks}; set data.split to classes")
    return source.read_whole is None or (config.split in ("auto", "folders") and source.has_split)


def _read_divided(source: Source, config: DataConfig, skipped: Skipped) -> tuple[ImageSet, ImageSet]:
    whole = _read_whole(source, config, skipped)
    try:
        shuffled = generator_of(source.name, config.seed, "test") if config.shuffle_classes else None
        return split_classes(whole, config.test_fraction, shuffled)
    except ValueError as error:
        raise DatasetError(f"distribution {source.name}: {error} in {source.place}; add classes") from error


def _read_whole(source: Source, config: DataConfig, skipped: Skipped) -> DistributionDataset:
    if source.read_whole is None:
        raise ValueError(f"data.split is {config.split}, but the split of {source.name} is fixed; set it to auto")
    whole = source.read_whole()
    _note_skipped(skipped, source.name, whole)
    return whole


def _note_skipped(skipped: Skipped, name: str, *datasets: DistributionDataset) -> None:
    found = {item.key: item.reason for dataset in datasets for item in dataset.skipped}
    if found:
        skipped[name] = found


def _check_test(name: str, images: ImageSet) -> None:
    if not _has_partners(images):
        raise DatasetError(
            f"distribution {name}: no class of its test holds two images, so no query could find its class; add images"
        )


def _has_partners(images: ImageSet) -> bool:
    """Whether some query can find another image of its class."""
    everything = np.ones(len(images), dtype=bool)
    query = everything if images.query_mask is None else images.query_mask.numpy()
    gallery = everything if images.gallery_mask is None else images.gallery_mask.numpy()
    found = np.bincount(images.targets[gallery], minlength=len(images.class_names))
    # An image that is both does not find itself.
    partners = found[images.targets[query]] - gallery[query]
    return bool((partners > 0).any())
