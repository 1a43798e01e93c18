"""Eight distributions, open set: training and test classes are disjoint. About ten seconds of one core."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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
    classes: Callable[[int, int], list[ImageClass]]


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

Split = dict[str, EmbeddedDistribution]


@dataclass(frozen=True)
class EmbeddedBenchmark:
    """The generated benchmark: ``train`` and ``test`` map a distribution's name to its images."""

    seed: int
    starved: bool
    train: Split
    test: Split

    def holdout(self, fraction: float = 0.3, seed: int = 0) -> tuple[Split, Split]:
        """Split the training classes once more, for choosing learning rates without a look at the test classes.

        Args:
            fraction: share of each distribution's training classes held out; at least two classes stay on each side.
            seed: which classes are held out.

        Returns:
            (training part, validation part), with disjoint classes, each numbered from 0.

        Raises:
            ValueError: if ``fraction`` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1 (both excluded), got {fraction}")
        kept, held = {}, {}
        for name, part in self.train.items():
            total = len(part.class_names)
            count = min(max(round(fraction * total), 2), total - 2)
            order = stream("holdout", seed, name, 0, "order").permutation(total).tolist()
            held[name] = part.select_classes(sorted(order[:count]))
            kept[name] = part.select_classes(sorted(order[count:]))
        return kept, held


def load_embedded(seed: int = 0, starved: bool = True) -> EmbeddedBenchmark:
    """Generate the benchmark.

    Args:
        seed: decides classes and images; where the classes are a fixed set (digits, characters, places in pictures) it
            decides which of them train and which test. Equal seeds give equal bytes with equal library versions.
        starved: keep only a quarter (rounded up) of the training images of the six small distributions, which gives
            4,134 training images instead of 5,796; the 5,796 test images stay.

    Returns:
        Train and test splits with disjoint classes; images are uint8 (N, 32, 32, 3).

    Raises:
        ValueError: if the seed is negative.
        ImportError: if matplotlib or scikit-learn is missing; the message says what to install.
    """
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    train, test = {}, {}
    for name in DISTRIBUTIONS:
        train[name], test[name] = _generate(name, seed, starved)
    return EmbeddedBenchmark(seed, starved, train, test)


def _generate(name: str, seed: int, starved: bool) -> tuple[EmbeddedDistribution, EmbeddedDistribution]:
    spec = DISTRIBUTIONS[name]
    made = spec.classes(seed, spec.train_classes + spec.test_classes)
    pictures = []
    for index, image_class in enumerate(made):
        rng = stream("benchmark", seed, name, index, "images")
        images = image_class.render(spec.images_per_class, rng)
        for nuisance in spec.nuisances:
            images = NUISANCES[nuisance](images, rng)
        pictures.append(to_bytes(images))
    names = [image_class.name for image_class in made]
    keep = -(-spec.images_per_class // 4) if starved and spec.starved else spec.images_per_class
    split = spec.train_classes
    return (
        _collect(name, [p[:keep] for p in pictures[:split]], names[:split]),
        _collect(name, pictures[split:], names[split:]),
    )


def _collect(name: str, pictures: list[np.ndarray], names: list[str]) -> EmbeddedDistribution:
    targets = np.repeat(np.arange(len(pictures), dtype=np.int64), [len(p) for p in pictures])
    return EmbeddedDistribution(name, np.concatenate(pictures), targets, names)
