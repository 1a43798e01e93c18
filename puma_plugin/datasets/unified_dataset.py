"""Several labelled image datasets as one, with labels (class, distribution)."""

import copy
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from puma_plugin.datasets.class_split import HELD_OUT, divide_classes, generator_of
from puma_plugin.datasets.image_reading import as_rgb
from puma_plugin.utils.arrays import BoolArray, IntArray

# An item id is the distribution's number in the high bits and the item's index in its dataset in the low ones, so that
# it stays the same when further distributions are appended or a subset is taken.
ID_SHIFT = 40
"""Bits of an item id that hold the item's position in its part."""
# Testers give these names to the joint figures and to those over all distributions, so no distribution can have them.
MEANS = ("unified", "harmonic", "arithmetic", "worst")


class UnifiedDataset(Dataset[tuple[Any, Tensor]]):
    """Join datasets ("distributions") into one whose labels are (class, distribution).

    Item i is ``(image, label)``: the image in RGB and transformed, the label an int64 tensor (2,). Classes are numbered
    contiguously over all distributions, in the order of the distributions and of their own labels; distributions in the
    order given. Without a transform, images become float32 tensors (3, H, W) in [0, 1], and all must have one size.

    Args:
        parts: name -> dataset of (image, integer label). Images may be PIL images, arrays (H, W), (H, W, 1)
            or (H, W, 3) of uint8, or tensors (which are passed on as they are). The labels are read without opening
            images: from ``labels=``, else from the dataset's attribute ``targets``, ``labels`` or ``_labels`` (also
            through ``Subset``, and as its ``target_transform`` gives them, if these are integers), or from a
            ``TensorDataset`` or list of pairs. ``classes`` or ``class_names`` of a part, where it has them, name its
            classes; ``query_mask`` and ``gallery_mask`` say which of its items are queries and which can be found.
        transform: applied to each RGB image.
        labels: name -> labels, for parts that do not tell theirs.

    Attributes:
        labels: (N, 2) int64, column 0 class, column 1 distribution; ``targets`` is column 0.
        item_ids: (N,) int64, stable when distributions are appended or a subset is taken.
        distribution_names: list of names.
        class_names: list of "distribution/class".
        query_mask, gallery_mask: (N,) bool, or None where no part distinguishes them.

    Raises:
        ValueError: no part, an empty part, a part of one class, one dataset under two names, labels that are missing,
            not integers or of the wrong number; on access: images of different sizes without a transform.
    """

    def __init__(
        self,
        parts: Mapping[str, Dataset[Any] | Sequence[Any]],
        transform: Callable[[Any], Any] | None = None,
        *,
        labels: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        given = dict(labels or {})
        _check_parts(parts, given)
        self.parts = list(parts.values())
        self.transform = transform
        self._form: tuple[tuple[int, ...], bool] | None = None
        self._all_names = list(parts)
        local, part_of, position, queries, gallery = [], [], [], [], []
        self._part_class_names: list[dict[int, str]] = []
        for number, (name, part) in enumerate(parts.items()):
            told = _check_labels(name, part, given.get(name))
            own = told if name in given else _transformed(name, part, told)
            _require_classes(name, own)
            local.append(own)
            part_of.append(np.full(len(own), number))
            position.append(np.arange(len(own)))
            queries.append(_mask(name, part, "query_mask", len(own)))
            gallery.append(_mask(name, part, "gallery_mask", len(own)))
            # A dataset's names are of its labels before it transforms them.
            are_named = bool((own == told).all())
            self._part_class_names.append(_names_of_classes(part if are_named else None, own))
        masks = ("query_mask", "gallery_mask")
        masked = any(_told(part, mask) is not None for part in self.parts for mask in masks)
        self._index(
            np.concatenate(part_of),
            np.concatenate(position),
            np.concatenate(local),
            np.concatenate(queries) if masked else None,
            np.concatenate(gallery) if masked else None,
        )

    def _index(
        self, part_of: IntArray, position: IntArray, local: IntArray, query: BoolArray | None, gallery: BoolArray | None
    ) -> None:
        """Number classes and distributions of these items contiguously."""
        self._part_of, self._position, self._local = part_of, position, local
        present, distribution = np.unique(part_of, return_inverse=True)
        # Sorting one number per item instead of pairs keeps a million items under a second.
        values, inner = np.unique(local, return_inverse=True)
        codes, classes = np.unique(part_of * len(values) + inner, return_inverse=True)
        pairs = np.stack([codes // len(values), values[codes % len(values)]], axis=1)
        self.distribution_names = [self._all_names[p] for p in present.tolist()]
        self.class_names = [
            f"{self._all_names[part]}/{self._part_class_names[part][label]}" for part, label in pairs.tolist()
        ]
        self.labels = torch.from_numpy(np.stack([classes, distribution], axis=1).astype(np.int64))
        self._targets = self.labels[:, 0].clone()
        self.item_ids = torch.from_numpy((part_of.astype(np.int64) << ID_SHIFT) + position)
        self.query_mask = None if query is None else torch.from_numpy(query)
        self.gallery_mask = None if gallery is None else torch.from_numpy(gallery)

    def origins(self) -> tuple[Tensor, Tensor]:
        """Of each item, the number of its part in ``parts`` and its position there, (N,) int64 each."""
        return self.item_ids >> ID_SHIFT, self.item_ids & ((1 << ID_SHIFT) - 1)

    def __len__(self) -> int:
        return len(self._position)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        if isinstance(index, slice):
            raise TypeError("index must be one integer, got a slice: take subset(range(...)) for several items")
        if isinstance(index, list | tuple):
            raise TypeError(
                "index must be one integer, got a list: a sampler of whole batches, as MultiDistributionSampler, goes "
                "to a DataLoader as batch_sampler=, not sampler="
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")
        item = self.parts[self._part_of[index]][int(self._position[index])]
        try:
            image = _to_rgb(_field(item, 0))
            tensor = image if self.transform is not None else _to_tensor(image)
        except ValueError as error:
            raise ValueError(f"{self.describe(int(self.item_ids[index]))}: {error}") from error
        if self.transform is not None:
            return self.transform(image), self.labels[index].clone()
        form = tuple(tensor.shape), tensor.is_floating_point()
        if self._form is None:
            self._form = form
        elif self._form != form:
            who, others = self.describe(int(self.item_ids[index])), self._form
            if form[0] != others[0]:
                raise ValueError(
                    f"{who} has shape {form[0]}, others {others[0]}: images of different sizes cannot be batched; give "
                    "UnifiedDataset a transform that resizes them"
                )
            raise ValueError(
                f"{who} is of type {tensor.dtype}, others {'not ' if form[1] else ''}of floating point: in a batch "
                "their values would be converted, but not scaled; give UnifiedDataset a transform that does both, such "
                "as torchvision's v2.ToDtype(torch.float32, scale=True)"
            )
        return tensor, self.labels[index].clone()  # a view would hold, and could change, the labels of all

    @property
    def num_classes(self) -> int:
        """Number of classes over all distributions."""
        return len(self.class_names)

    @property
    def local_classes(self) -> Tensor | None:
        """(N,) int64 class numbers within each item's own data set, those of classes before its split counted.

        None unless all parts tell by an attribute ``first_class`` how many these are (the benchmark's datasets do).
        """
        first = [_told(part, "first_class") for part in self.parts]
        if None in first:
            return None
        return torch.from_numpy(self._local + np.asarray(first, np.int64)[self._part_of])

    @property
    def recall_ks(self) -> dict[str, tuple[int, ...]]:
        """The k of the recalls that parts ask for by an attribute ``recall_ks``, by name of the distribution."""
        asked = {name: _told(part, "recall_ks") for name, part in zip(self._all_names, self.parts, strict=True)}
        return {name: tuple(asked[name]) for name in self.distribution_names if asked[name]}

    @property
    def targets(self) -> Tensor:
        """(N,) int64 classes alone, for samplers of pml and others that take one column."""
        return self._targets

    @property
    def num_distributions(self) -> int:
        """Number of distributions."""
        return len(self.distribution_names)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Distribution name -> (classes, items)."""
        labels = self.labels.numpy()
        return {
            name: (len(np.unique(labels[labels[:, 1] == d, 0])), int((labels[:, 1] == d).sum()))
            for d, name in enumerate(self.distribution_names)
        }

    def describe(self, item_id: int) -> str:
        """Where an item comes from, as "name[index]" of its own dataset.

        Raises:
            ValueError: an id of another dataset.
        """
        part, position = item_id >> ID_SHIFT, item_id & ((1 << ID_SHIFT) - 1)
        if not 0 <= part < len(self._all_names):
            raise ValueError(
                f"item id {item_id} does not belong to this dataset of {len(self._all_names)} distributions"
            )
        return f"{self._all_names[part]}[{position}]"

    def subset(self, indices: Sequence[int] | Tensor | IntArray) -> "UnifiedDataset":
        """These items only, in this order; classes and distributions contiguous again, item ids kept.

        Args:
            indices: positions (n,), or a bool mask (N,).

        Raises:
            ValueError: no positions, other than integers, or positions that are not there.
        """
        chosen = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        if chosen.dtype == np.bool_ and chosen.shape == (len(self),):
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                f"indices must be a non-empty list of positions, got {chosen.dtype} of shape {chosen.shape}"
            )
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise ValueError(f"indices must lie in 0..{len(self) - 1}, got {chosen.min()}..{chosen.max()}")
        part = copy.copy(self)
        query = None if self.query_mask is None else self.query_mask.numpy()[chosen]
        gallery = None if self.gallery_mask is None else self.gallery_mask.numpy()[chosen]
        part._index(self._part_of[chosen], self._position[chosen], self._local[chosen], query, gallery)
        return part

    def select(self, names: Sequence[str]) -> "UnifiedDataset":
        """The distributions of these names only.

        Raises:
            ValueError: no name, or an unknown one.
        """
        unknown = sorted(set(names) - set(self.distribution_names))
        if unknown or not names:
            raise ValueError(f"names must be some of {self.distribution_names}, got {list(names)}")
        wanted = [d for d, name in enumerate(self.distribution_names) if name in names]
        return self.subset(np.flatnonzero(np.isin(self.labels[:, 1].numpy(), wanted)))

    def split_classes(self, fraction: float, seed: int = 0) -> tuple["UnifiedDataset", "UnifiedDataset"]:
        """Split whole classes off, in every distribution: (rest, held out). For validation apart from the test classes.

        Args:
            fraction: share of each distribution's classes to hold out, rounded up, at least 2 and leaving at least 2.
            seed: of the choice, which does not depend on the other distributions.

        Raises:
            ValueError: ``fraction`` not in (0, 1), or a distribution with fewer than 4 classes.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie in (0, 1), got {fraction}")
        labels = self.labels.numpy()
        held: list[int] = []
        for d, name in enumerate(self.distribution_names):
            classes = np.unique(labels[labels[:, 1] == d, 0])
            if len(classes) < 4:
                raise ValueError(f"distribution {name!r} has {len(classes)} classes; holding out needs at least 4")
            _, taken = divide_classes(len(classes), fraction, generator_of(name, seed, HELD_OUT), least=2)
            held += classes[taken].tolist()
        out = np.isin(labels[:, 0], held)
        return self.subset(np.flatnonzero(~out)), self.subset(np.flatnonzero(out))

    def with_transform(self, transform: Callable[[Any], Any] | None) -> "UnifiedDataset":
        """The same items with another transform."""
        other = copy.copy(self)
        other.transform, other._form = transform, None
        return other

    def __repr__(self) -> str:
        rows = [f"  {name}: {classes} classes, {items} items" for name, (classes, items) in self.counts().items()]
        return f"UnifiedDataset({len(self)} items, {self.num_classes} classes)\n" + "\n".join(rows)


def _check_parts(parts: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if not isinstance(parts, Mapping) or not parts:
        raise ValueError("parts must be a non-empty mapping {name: dataset}")
    for name in parts:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\s][^/]*", name) or name in MEANS:
            raise ValueError(
                f"{name!r} cannot name a distribution: names are non-empty strings without '/', other than {MEANS}"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(
                f"{name!r} cannot name a distribution: it is the name of a folder that is no UTF-8, which reports "
                "cannot show; rename the folder, or give it a name of its own (--data.folders.NAME PATH)"
            )
    seen: dict[int, str] = {}
    for name, part in parts.items():
        if part is None or not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
            raise ValueError(f"distribution {name!r} must be a dataset with __len__ and __getitem__, got {type(part)}")
        if id(part) in seen:
            raise ValueError(f"distributions {seen[id(part)]!r} and {name!r} are the same dataset object")
        seen[id(part)] = name
        whole = part
        while isinstance(whole, Subset):
            whole = whole.dataset
        if isinstance(whole, UnifiedDataset):
            raise ValueError(
                f"distribution {name!r} is a UnifiedDataset, whose {whole.num_distributions} distributions would "
                "become one: join the mappings that they were made of"
                + ("; for some of its items take its subset(indices)" if whole is not part else "")
            )
        if len(part) == 0:
            raise ValueError(f"distribution {name!r} is empty: check its folder or split, or leave it out")
    if unknown := sorted(set(given) - set(parts)):
        raise ValueError(f"labels are given for {unknown}, which are not among the parts {list(parts)}")


def _check_labels(name: str, part: Any, given: Any) -> IntArray:
    raw = given if given is not None else _find_labels(name, part)
    if raw is None:
        raise ValueError(
            f"distribution {name!r} ({type(part).__name__}) does not tell its labels: give it an attribute "
            f"targets, or pass labels={{{name!r}: [...]}}"
        )
    values = np.asarray(raw.cpu() if isinstance(raw, Tensor) else raw)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (len(part),) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"labels of distribution {name!r} must be {len(part)} integers, got {values.dtype} of shape {values.shape}"
        )
    return values.astype(np.int64)


def _require_classes(name: str, labels: IntArray) -> None:
    if (labels == labels[0]).all():
        raise ValueError(
            f"distribution {name!r} has one class only; metric learning needs at least two: join it with another "
            "distribution or leave it out"
        )


def _find_labels(name: str, part: Any) -> Any:
    """Labels of a dataset without opening its images, or None."""
    if isinstance(part, Subset):
        inner = _find_labels(name, part.dataset)
        if isinstance(inner, Tensor):
            return inner[torch.as_tensor(part.indices, dtype=torch.int64)]
        return None if inner is None else np.asarray(inner)[np.asarray(part.indices, dtype=np.int64)]
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(part, attribute, None)
        if found is not None:
            return found
    if isinstance(part, TensorDataset) and len(part.tensors) >= 2:
        return part.tensors[1]
    if isinstance(part, list | tuple):
        try:
            found = [_field(item, 1) for item in part]
        except ValueError as error:
            raise ValueError(f"distribution {name!r}: {error}") from error
        return [label.item() if isinstance(label, Tensor) and label.numel() == 1 else label for label in found]
    return None


def _transformed(name: str, part: Any, labels: IntArray) -> IntArray:
    """Labels as the items have them: torchvision's ``targets`` are those before ``target_transform``."""
    whole = part
    while isinstance(whole, Subset):
        whole = whole.dataset
    # The dataset's own, and not that of one which it wraps and has transformed already.
    transform = getattr(whole, "__dict__", {}).get("target_transform")
    if transform is None:
        return labels
    _, first, places = np.unique(labels, return_index=True, return_inverse=True)
    raw = _find_labels(name, part)
    try:
        given = [transform(raw[index]) for index in first.tolist()]
    except Exception as error:  # whatever a user's function may raise
        warnings.warn(
            f"the target_transform of distribution {name!r} cannot be applied to its labels ({type(error).__name__}: "
            f"{error}), so its classes are those before it; pass labels={{{name!r}: [...]}} for others",
            stacklevel=4,
        )
        return labels
    numbers = [_whole_number(value) for value in given]
    return labels if None in numbers else np.array(numbers, dtype=np.int64)[places]


def _whole_number(value: Any) -> int | None:
    """None for one-hot rows, floats and others."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    try:
        return operator.index(value)
    except TypeError:
        return None


def _field(item: Any, place: int) -> Any:
    """Image (0) or label (1) of an item."""
    try:
        return item[place]
    except (KeyError, IndexError, TypeError) as error:
        kind = f"dict with the keys {list(item)}" if isinstance(item, Mapping) else type(item).__name__
        raise ValueError(
            f"items must be (image, label), got {kind}: wrap the dataset in one whose __getitem__ returns such pairs"
        ) from error


def _names_of_classes(part: Any, labels: IntArray) -> dict[int, str]:
    """Own label -> name, from the dataset's list or mapping of class names; else the label itself."""
    listed = _told(part, "classes")
    if listed is None:
        listed = _told(part, "class_names")
    names: dict[int, str] = {}
    for label in np.unique(labels).tolist():
        known = listed is not None and (label in listed if isinstance(listed, Mapping) else 0 <= label < len(listed))
        names[label] = str(listed[label]) if known and listed is not None else str(label)
    return names


def _told(part: Any, attribute: str) -> Any:
    """An attribute of a part or of what it is a Subset of, or None."""
    found = getattr(part, attribute, None)
    return _told(part.dataset, attribute) if found is None and isinstance(part, Subset) else found


def _mask(name: str, part: Any, attribute: str, size: int) -> BoolArray:
    found = getattr(part, attribute, None)
    if found is None and isinstance(part, Subset):
        whole = _mask(name, part.dataset, attribute, len(part.dataset))  # type: ignore[arg-type]
        return whole[np.asarray(part.indices, dtype=np.int64)]
    if found is None:
        return np.ones(size, dtype=np.bool_)
    values = np.asarray(found.cpu() if isinstance(found, Tensor) else found)
    if values.shape != (size,) or values.dtype != np.bool_:
        raise ValueError(
            f"{attribute} of distribution {name!r} must be bool of shape ({size},), got {values.dtype} {values.shape}"
        )
    return values


def _to_rgb(image: Any) -> Any:
    """PIL images and arrays as RGB PIL images; tensors as they are."""
    if isinstance(image, np.ndarray):
        try:
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
        except TypeError as error:
            raise ValueError(
                f"arrays must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {image.dtype} {image.shape}: "
                "convert it, or let the dataset return tensors, which are passed on as they are"
            ) from error
    return as_rgb(image) if isinstance(image, Image.Image) else image


def _to_tensor(image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        # Imported here, as it takes a second and 170 MB that listing images need not pay.
        from torchvision.transforms.functional import pil_to_tensor

        return pil_to_tensor(image).float() / 255
    if not isinstance(image, Tensor):
        raise ValueError(f"images must be PIL images, uint8 arrays or tensors, got {type(image)}: give a transform")
    return image
