"""The eight datasets of the unified benchmark together."""

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from PIL import Image

from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset
from puma_plugin.datasets.cars196 import Cars196
from puma_plugin.datasets.cub import CUB
from puma_plugin.datasets.distribution_dataset import BadImages, Split
from puma_plugin.datasets.errors import DatasetError, told_together
from puma_plugin.datasets.fgvc_aircraft import FGVCAircraft
from puma_plugin.datasets.flowers102 import Flowers102
from puma_plugin.datasets.in_shop import InShop
from puma_plugin.datasets.nabirds import NABirds
from puma_plugin.datasets.stanford_dogs import StanfordDogs
from puma_plugin.datasets.stanford_online_products import StanfordOnlineProducts

BENCHMARK: dict[str, type[BenchmarkDataset]] = {
    dataset.facts.name: dataset
    for dataset in (CUB, Cars196, StanfordOnlineProducts, InShop, NABirds, StanfordDogs, Flowers102, FGVCAircraft)
}


def benchmark_names(names: Sequence[str] | None = None) -> list[str]:
    """These datasets in the benchmark's order; all eight without ``names``.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names or () if name not in BENCHMARK]
    if unknown:
        raise ValueError(f"unknown dataset {unknown[0]!r}; give some of {', '.join(BENCHMARK)}")
    return [name for name in BENCHMARK if not names or name in names]


def load_benchmark(
    root: str | os.PathLike[str],
    split: Split = "train",
    names: Sequence[str] | None = None,
    transform: Callable[[Image.Image], Any] | None = None,
    bad_images: BadImages = "raise",
    known_bad: Collection[str] | str | os.PathLike[str] | None = None,
    check_counts: bool = True,
) -> dict[str, BenchmarkDataset]:
    """One split of the benchmark's datasets, ready for :class:`UnifiedDataset`.

    Args:
        root: the folder that holds the datasets' folders.
        names: which of the eight; None: all.
        split, transform, bad_images, known_bad, check_counts: see :class:`BenchmarkDataset`.

    Raises:
        ValueError: an unknown name.
        DatasetError: naming every dataset that cannot be used, with its reason.
    """
    loaded, faults = {}, []
    for name in benchmark_names(names):
        try:
            loaded[name] = BENCHMARK[name](root, split, transform, bad_images, known_bad, check_counts)
        except DatasetError as error:
            faults.append(str(error))
    if faults:
        how = "" if check_counts else " --check-counts false"
        raise DatasetError(told_together(faults, f"see `puma datasets verify {os.fspath(root)}{how}`"))
    return loaded
