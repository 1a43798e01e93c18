"""Where the distributions of a run lie on disk, and how each is read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from puma_plugin.datasets import BENCHMARK, ImageFolder, ManifestDataset, load_benchmark, read_manifest
from puma_plugin.datasets.distribution_dataset import DistributionDataset, Split
from puma_plugin.datasets.image_folder import has_split_folders, list_whole_folder, require_distributions
from puma_plugin.datasets.image_scan import subfolders
from puma_plugin.datasets.listing import Listing
from puma_plugin.datasets.manifest import list_manifest_distribution
from puma_plugin.experiments.settings.config import DataConfig
from puma_plugin.utils.paths import full_path


@dataclass(frozen=True)
class Source:
    """One distribution, read when it is asked for.

    Attributes:
        name: the distribution's name.
        place: folder or file, for messages.
        has_split: it says itself which images train and which test.
        read_part: reads "train" or "test".
        read_whole: reads all images, to be split by classes or evaluated; None where the split is fixed.
    """

    name: str
    place: str
    has_split: bool
    read_part: Callable[[Split], DistributionDataset]
    read_whole: Callable[[], DistributionDataset] | None


def open_sources(config: DataConfig) -> list[Source]:
    """The distributions of a configuration of kind "image_folders", "benchmark" or "manifest".

    Raises:
        ValueError: an unknown name, or a folder or manifest that cannot be read.
    """
    return {"image_folders": _folders, "benchmark": _benchmark, "manifest": _manifest}[config.kind](config)


def _reading(config: DataConfig) -> dict[str, Any]:
    return {"bad_images": config.bad_images, "known_bad": config.known_bad}


def _reading_own(config: DataConfig) -> dict[str, Any]:
    return {"min_images": config.min_images, "small_classes": config.small_classes, **_reading(config)}


def _whole(read: Callable[[], Listing], name: str, config: DataConfig) -> DistributionDataset:
    return DistributionDataset(read(), name, None, **_reading_own(config))


def _folders(config: DataConfig) -> list[Source]:
    folders = config.folders
    if config.root is not None:
        root = full_path(config.root)
        if not os.path.isdir(root):
            raise ValueError(f"data.root is {root}, which is no folder; give one that holds a folder per distribution")
        names = subfolders(root)
        if not names:
            raise ValueError(f"data.root {root} holds no folder; give one that holds a folder per distribution")
        require_distributions(root, _chosen(config, names))
        folders = {name: os.path.join(root, name) for name in names}
    sources = []
    for name in _chosen(config, list(folders)):
        folder = full_path(folders[name])
        read_part = partial(ImageFolder, folder, name=name, **_reading_own(config))
        read_whole = partial(_whole, partial(list_whole_folder, folder, f"distribution {name}"), name, config)
        sources.append(Source(name, folder, has_split_folders(folder), read_part, read_whole))
    return sources


def _manifest(config: DataConfig) -> list[Source]:
    assert config.manifest is not None
    table = read_manifest(config.manifest, config.root)
    if not table.distribution_names:
        raise ValueError(f"manifest {table.path} has no rows; add images, or give another data.manifest")
    sources = []
    for name in _chosen(config, table.distribution_names):
        read_whole = partial(_whole, partial(list_manifest_distribution, table, name), name, config)
        read_part = partial(ManifestDataset, table, distribution=name, **_reading_own(config))
        sources.append(Source(name, table.path, table.has_splits(name), read_part, read_whole))
    return sources


def _benchmark(config: DataConfig) -> list[Source]:
    root = full_path(str(config.root))
    names = [name for name in BENCHMARK if name in _chosen(config, list(BENCHMARK))]
    return [Source(name, root, True, partial(_benchmark_part, root, name, config), None) for name in names]


def _benchmark_part(root: str, name: str, config: DataConfig, split: Split) -> DistributionDataset:
    return load_benchmark(root, split, [name], check_counts=config.check_counts, **_reading(config))[name]


def _chosen(config: DataConfig, names: list[str]) -> list[str]:
    """data.names, or all."""
    unknown = [name for name in config.names or () if name not in names]
    if unknown:
        raise ValueError(f"data.names contains {unknown[0]!r}; there are {', '.join(names[:20])}")
    return names if config.names is None else config.names
