"""From a data configuration to training, held-out and test images of every distribution."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from puma_plugin.experiments.config import DataConfig
from puma_plugin.experiments.images import ImageSet, read_class_folders, share, split_classes

ImageSets = dict[str, ImageSet]


@dataclass(frozen=True)
class Splits:
    """Images per distribution: to train on, held-out training classes (may be empty), and the test."""

    train: ImageSets
    validation: ImageSets
    test: ImageSets

    @property
    def names(self) -> list[str]:
        """The distributions in their fixed order."""
        return list(self.test)

    def only(self, name: str) -> "Splits":
        """The splits of a single distribution."""
        parts = (self.train, self.validation, self.test)
        return Splits(*({name: sets[name]} if name in sets else {} for sets in parts))

    def describe(self) -> dict[str, dict[str, dict[str, int]]]:
        """Classes and images of every part."""
        return {
            name: {
                part: sets[name].describe()
                for part, sets in (("train", self.train), ("validation", self.validation), ("test", self.test))
                if name in sets
            }
            for name in self.names
        }


@lru_cache(maxsize=2)
def _embedded(seed: int, domain: Literal["benchmark", "tuning"]) -> tuple[ImageSets, ImageSets]:
    from puma_plugin.datasets.embedded import load_embedded

    benchmark = load_embedded(seed=seed, starved=False, domain=domain)
    train, test = (
        {name: ImageSet(part.images, part.targets, part.class_names) for name, part in sets.items()}
        for sets in (benchmark.train, benchmark.test)
    )
    return train, test


def _starve(train: ImageSets) -> ImageSets:
    """What `load_embedded(starved=True)` keeps: the first quarter of each class of the small distributions."""
    from puma_plugin.datasets.embedded import DISTRIBUTIONS

    specs = {name: DISTRIBUTIONS[name] for name in train}
    return {
        name: images.first(-(-specs[name].images_per_class // 4)) if specs[name].starved else images
        for name, images in train.items()
    }


def _folders(name: str, folder: Path, config: DataConfig, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    both = (folder / "train").is_dir() and (folder / "test").is_dir()
    if config.split == "folders" and not both:
        raise ValueError(
            f"data.split is folders, but {folder} does not hold train/ and test/; set data.split to classes"
        )
    try:
        if config.split == "folders" or (config.split == "auto" and both):
            return read_class_folders(folder / "train"), read_class_folders(folder / "test")
        images = read_class_folders(folder)
        return split_classes(images, config.test_fraction, generator if config.shuffle_classes else None)
    except ValueError as error:
        raise ValueError(f"distribution {name}: {error}") from error


def _check_test(name: str, images: ImageSet) -> None:
    if len(images) == len(set(images.targets.tolist())):
        raise ValueError(
            f"distribution {name}: no class of its test holds two images, so no query could find its class; add images"
        )


def load_test(config: DataConfig) -> Splits:
    """Only the test images, for an evaluation; here `split: all` takes every class.

    Raises:
        ValueError: naming the distribution and what is wrong with its folder.
    """
    if config.split != "all":
        return Splits({}, {}, load_splits(replace(config, shots=None)).test)
    test = {}
    for name, folder in config.folders.items():
        try:
            test[name] = read_class_folders(Path(folder).expanduser())
        except ValueError as error:
            raise ValueError(f"distribution {name}: {error}") from error
        _check_test(name, test[name])
    return Splits({}, {}, test)


def load_splits(config: DataConfig) -> Splits:
    """Read or generate the images.

    Held-out training classes are drawn with `config.seed` and keep all their images, for a figure with less noise;
    few-shot and starving act on the classes that are trained on. A distribution whose share would be less than two
    classes holds out none. In the tuning domain the test classes are the held-out ones.

    Raises:
        ValueError: naming the distribution and what is wrong with its folder.
    """
    if config.split == "all":
        raise ValueError("data.split is all, which leaves nothing to train on; give auto, folders or classes")
    generator = torch.Generator().manual_seed(config.seed)
    train: ImageSets = {}
    test: ImageSets = {}
    if config.kind == "embedded":
        train, test = (dict(sets) for sets in _embedded(config.seed, config.domain))
    else:
        for name, folder in config.folders.items():
            train[name], test[name] = _folders(name, Path(folder).expanduser(), config, generator)
    for name, images in test.items():
        _check_test(name, images)
    validation: ImageSets = {}
    if config.domain == "tuning":
        validation = test
    elif config.validation_fraction > 0:
        for name, images in train.items():
            count = len(images.class_names)
            if 2 <= share(config.validation_fraction, count) <= count - 2:
                train[name], validation[name] = split_classes(images, config.validation_fraction, generator)
    if config.kind == "embedded" and config.starved:
        train = _starve(train)
    if config.shots is not None:
        train = {name: images.few_shot(config.shots, generator) for name, images in train.items()}
    return Splits(train, validation, test)
