"""Eight distributions, open set: training and test classes are disjoint. About ten seconds of one core."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from puma_plugin.datasets.embedded import contour, digit, flag, fractal, glyph, photo, solid, texture
from puma_plugin.datasets.embedded.canvas import ImageClass, stream, to_bytes
from puma_plugin.datasets.embedded.distribution import EmbeddedDistribution
from puma_plugin.datasets.embedded.nuisances import NUISANCES


class DistributionSpec(NamedTuple):
    """One row of the benchmark's table."""

    train_classes: int
    test_classes: int
    images_per_class: int
    nuisances: tuple[str, ...]
    starved: bool
    classes: Callable[[int, int, str], list[ImageClass]]


DISTRIBUTIONS: dict[str, DistributionSpec] = {
    "glyph": DistributionSpec(320, 320, 8, ("stripes",), False, glyph.classes),
    "fractal": DistributionSpec(50, 50, 20, ("lines", "salt"), False, fractal.classes),
    "contour": DistributionSpec(30, 30, 22, ("lines",), True, contour.classes),
    "texture": DistributionSpec(15, 15, 28, ("channel_swap", "gradient"), True, texture.classes),
    "solid": DistributionSpec(15, 15, 28, ("stripes",), True, solid.classes),
    "flag": DistributionSpec(12, 12, 28, ("gradient",), True, flag.classes),
    "photo": DistributionSpec(10, 10, 20, ("channel_swap",), True, photo.classes),
    "digit": DistributionSpec(5, 5, 40, ("lines", "discs"), True, digit.classes),
}
"""Name -> classes, images, nuisances. Glyph holds 70 % of the training classes: the paper's imbalance in small."""

UNTUNED = ("digit",)
"""Not in the tuning domain: there are ten digits, and the benchmark needs all of them."""

Domain = Literal["benchmark", "tuning"]
Split = dict[str, EmbeddedDistribution]


@dataclass(frozen=True)
class EmbeddedBenchmark:
    """The generated benchmark: ``train`` and ``test`` map a distribution's name to its images."""

    train: Split
    test: Split


def load_embedded(seed: int = 0, starved: bool = True, domain: Domain = "benchmark") -> EmbeddedBenchmark:
    """Generate the benchmark, or what its settings are chosen on.

    Args:
        seed: decides classes and images; where the classes are a fixed set (digits, characters, places in pictures) it
            decides which of them train and which test. Equal seeds give equal bytes with equal library versions.
        starved: keep only a quarter of the training images of the six small distributions (:func:`starve`), which gives
            4,134 training images instead of 5,796; the 5,796 test images stay.
        domain: "benchmark", or "tuning" for choosing settings: other classes, so that no class of any "benchmark" seed
            is looked at. Procedural classes come from streams of their own, a third of the characters and of the places
            is reserved, digits are left out; it has as many training classes and 30 % as many test classes.

    Returns:
        Train and test splits with disjoint classes; images are uint8 (N, 32, 32, 3).

    Raises:
        ValueError: if the seed is negative or the domain unknown.
        ImportError: if matplotlib is missing; the message says what to install.
    """
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    if domain not in ("benchmark", "tuning"):
        raise ValueError(f"domain must be 'benchmark' or 'tuning', got {domain!r}")
    train, test = {}, {}
    for name in DISTRIBUTIONS:
        if domain == "benchmark" or name not in UNTUNED:
            train[name], test[name] = _generate(name, seed, domain)
    return EmbeddedBenchmark(starve(train) if starved else train, test)


def starve(train: Mapping[str, EmbeddedDistribution]) -> Split:
    """The whole training images, but of the six small distributions each class' first quarter, rounded up."""
    kept = dict(train)
    for name, whole in train.items():
        spec = DISTRIBUTIONS[name]
        if spec.starved:
            of_classes = [np.flatnonzero(whole.targets == number) for number in range(len(whole.class_names))]
            first = [images[: -(-spec.images_per_class // 4)] for images in of_classes]
            kept[name] = whole.subset(np.sort(np.concatenate(first)))
    return kept


def _generate(name: str, seed: int, domain: Domain = "benchmark") -> tuple[EmbeddedDistribution, EmbeddedDistribution]:
    spec = DISTRIBUTIONS[name]
    test_classes = spec.test_classes if domain == "benchmark" else max(2, round(0.3 * spec.test_classes))
    made = spec.classes(seed, spec.train_classes + test_classes, domain)
    pictures = []
    for index, image_class in enumerate(made):
        rng = stream(domain, seed, name, index, "images")
        images = image_class.render(spec.images_per_class, rng)
        for nuisance in spec.nuisances:
            images = NUISANCES[nuisance](images, rng)
        pictures.append(to_bytes(images))
    names = [image_class.name for image_class in made]
    split = spec.train_classes
    return _collect(name, pictures[:split], names[:split]), _collect(name, pictures[split:], names[split:])


def _collect(name: str, pictures: list[np.ndarray], names: list[str]) -> EmbeddedDistribution:
    targets = np.repeat(np.arange(len(pictures), dtype=np.int64), [len(p) for p in pictures])
    return EmbeddedDistribution(name, np.concatenate(pictures), targets, names)
