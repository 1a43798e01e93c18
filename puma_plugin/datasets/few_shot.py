"""Few-shot training sets: a fixed number of images per class, drawn once and kept as a file of relative paths."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from puma_plugin.datasets.errors import DatasetError
from puma_plugin.utils import write_json
from puma_plugin.utils.arrays import IntArray
from puma_plugin.utils.paths import full_path

FORMAT = "puma few-shot split"
VERSION = 1
SHOTS = (1, 2, 4, 8, 16)


class KeyedImages(Protocol):
    """What a draw needs to know of a dataset; every :class:`DistributionDataset` has it."""

    targets: IntArray
    class_names: list[str]

    @property
    def item_keys(self) -> Sequence[str]: ...

    def subset(self, indices: IntArray, /) -> Any: ...


Images = TypeVar("Images", bound=KeyedImages)


@dataclass(frozen=True)
class FewShotSplit:
    """Which images of which classes train, for several distributions.

    Attributes:
        shots: images per class; a class with fewer has all of its images.
        seed: what they were drawn with.
        images: distribution -> class name -> item keys (see :class:`DistributionDataset`), both in a fixed order.
    """

    shots: int
    seed: int
    images: dict[str, dict[str, list[str]]]

    def apply(self, name: str, dataset: Images) -> Images:
        """The part of ``dataset`` that this split chose for the distribution ``name``.

        Raises:
            DatasetError: the distribution is not in the split, an image of the split is not in the dataset or in
                another class there, or the dataset has a class that the split has not.
        """
        if name not in self.images:
            raise DatasetError(
                f"{name}: the few-shot split holds no such distribution (only {', '.join(self.images)}); draw a split "
                "that includes it"
            )
        classes = self.images[name]
        unknown = sorted(set(dataset.class_names) ^ set(classes))
        if unknown:
            where = "split" if unknown[0] in classes else "dataset"
            raise DatasetError(
                f"{name}: class {unknown[0]!r} is only in the few-shot {where} ({len(unknown):,} classes differ "
                "between the two); the split was drawn from other images, draw it again"
            )
        place = {key: index for index, key in enumerate(dataset.item_keys)}
        chosen = []
        for number, class_name in enumerate(dataset.class_names):
            for key in classes[class_name]:
                index = place.get(key, -1)
                if index < 0 or dataset.targets[index] != number:
                    trouble = "not in the dataset" if index < 0 else f"not of class {class_name!r} there"
                    raise DatasetError(
                        f"{name}: the few-shot split lists {key}, which is {trouble}; the dataset lies in another "
                        "layout, is another version, or leaves out bad images that the split does not: draw the split "
                        "again, in the same way (`puma datasets few-shot --bad-images skip`)"
                    )
                chosen.append(index)
        part: Images = dataset.subset(np.sort(np.array(chosen, np.int64)))
        return part


def draw_few_shot(datasets: Mapping[str, KeyedImages], shots: int, seed: int = 0) -> FewShotSplit:
    """Draw ``shots`` images of every class.

    Taken are the images of each class whose SHA-256 of (seed, distribution, key) is smallest. So nothing else matters,
    neither the order of files, nor the other classes, nor a library's version; and fewer shots are a part of more.

    Args:
        datasets: name -> training dataset.
        shots: images per class, at least 1; the benchmark uses 1, 2, 4, 8, 16.
        seed: another seed, another choice.

    Raises:
        ValueError: ``shots`` below 1.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}; give 1 or more")
    images: dict[str, dict[str, list[str]]] = {}
    for name, dataset in datasets.items():
        members: list[list[tuple[bytes, str]]] = [[] for _ in dataset.class_names]
        for key, target in zip(dataset.item_keys, dataset.targets.tolist(), strict=True):
            rank = hashlib.sha256(f"{seed}\0{name}\0{key}".encode(errors="surrogateescape")).digest()
            members[target].append((rank, key))
        images[name] = {
            class_name: sorted(key for _, key in sorted(ranked)[:shots])
            for class_name, ranked in zip(dataset.class_names, members, strict=True)
        }
    return FewShotSplit(shots, seed, images)


def write_few_shot(path: str | os.PathLike[str], split: FewShotSplit) -> None:
    """Write the split as JSON; an interrupted write leaves no file or the old one.

    Raises:
        DatasetError: an image that does not lie below its dataset's folder.
    """
    for name, classes in split.images.items():
        for keys in classes.values():
            for key in keys:
                if _leaves_folder(key):
                    raise DatasetError(
                        f"{name}: {key} does not lie below the dataset's folder, which is what the paths in the file "
                        "are relative to; read the manifest with root=, the folder above all images"
                    )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "shots": split.shots,
        "seed": split.seed,
        "distributions": split.images,
    }
    write_json(path, content)


def read_few_shot(path: str | os.PathLike[str]) -> FewShotSplit:
    """Read and check a split.

    Raises:
        DatasetError: no such file, no JSON, another format or version, or contents that break its rules (more than
            ``shots`` images, an empty class, an image twice, a path that is not relative), each with the place.
    """
    file = os.fspath(path)
    try:
        with open(full_path(file), encoding="utf-8") as text:
            content: Any = json.load(text)
    except OSError as error:
        raise DatasetError(f"few-shot split {file} cannot be read ({error.strerror}); draw one first") from error
    except ValueError as error:
        raise DatasetError(f"few-shot split {file} is no JSON ({error}); draw it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DatasetError(
            f"{file} is no few-shot split (its format is not {FORMAT!r}); give a file drawn by this package"
        )
    if content.get("version") != VERSION:
        raise DatasetError(
            f"few-shot split {file} has version {content.get('version')!r}, this package reads version {VERSION}; "
            "draw it again"
        )
    shots, seed = (_whole_number(file, name, content.get(name)) for name in ("shots", "seed"))
    if shots < 1:
        raise DatasetError(f"few-shot split {file}: shots is {shots}, at least 1 is right; draw it again")
    images = content.get("distributions")
    if not isinstance(images, dict):
        raise DatasetError(f"few-shot split {file} has no distributions; draw it again")
    for name, classes in images.items():
        _check_classes(file, name, classes, shots)
    return FewShotSplit(shots, seed, images)


def _leaves_folder(key: str) -> bool:
    return key.startswith("/") or ".." in key.split("/")


def _whole_number(file: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise DatasetError(f"few-shot split {file}: {name} is {value!r}, not a whole number; draw it again")
    return value


def _check_classes(file: str, name: str, classes: Any, shots: int) -> None:
    if not isinstance(classes, dict) or not classes:
        raise DatasetError(f"few-shot split {file}: {name} has no classes; draw it again")
    seen: set[str] = set()
    for class_name, keys in classes.items():
        where = f"few-shot split {file}: class {class_name!r} of {name}"
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise DatasetError(f"{where} is no list of paths; draw it again")
        if not 1 <= len(keys) <= shots:
            raise DatasetError(f"{where} has {len(keys)} images, 1 to {shots} are right; draw it again")
        for key in keys:
            if _leaves_folder(key):
                raise DatasetError(
                    f"{where} has the path {key!r}, which is not below the dataset's folder; draw it again"
                )
            if key in seen:
                raise DatasetError(f"{where} has {key!r}, which is in the split twice; draw it again")
            seen.add(key)
