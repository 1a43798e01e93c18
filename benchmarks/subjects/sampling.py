"""Drawing batches: ours, pml's MPerClassSampler, plain shuffling; over the paper's datasets and over a million items.

pml's sampler wants one label per item, knows no distributions, and lists its items in advance, as many as
``length_before_new_iter`` says: an epoch of the eight datasets; of the million items a hundred batches only, so that
neither its first batch nor its memory pays for more than is drawn. It runs in both of its forms: with ``batch_size``
(no class twice in a batch, as ours) and without (its default, faster: one shuffle of all classes after the other).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler

from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Plan, Subject, Workload
from benchmarks.timing import Call
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.samplers import MultiDistributionSampler

# Training classes and images of the paper's eight datasets.
DATASETS = tuple(facts.train_size for facts in CATALOGUE.values())
MILLION, MILLION_CLASSES = 1_000_000, 20_000
SHARES = (0.5, 0.2, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01)  # of the million's classes, by distribution
M = 4
STRETCH = 100  # batches of the million that are drawn at a time
OURS = ("ours", "ours_uniform", "ours_m4")
CONTESTANTS = (*OURS, "pml_m4", "pml_m4_passes", "shuffle")


@dataclass(frozen=True)
class SamplingCase:
    """Batches of ``batch`` items out of a ``share`` of "eight_datasets" or "million_items"."""

    source: str = "eight_datasets"
    batch: int = 180
    share: float = 1.0

    @property
    def id(self) -> str:
        return f"{self.source}-B{self.batch}-x{self.share:g}"


def joined_labels(share: float) -> Tensor:
    """Labels (N, 2) int64, (class, distribution), of the eight training sets, shrunk by ``share``."""
    rows, first = [], 0
    for distribution, sizes in enumerate(DATASETS):
        classes, images = (max(2, round(share * size)) for size in sizes)
        column = first + torch.arange(images) % classes
        rows.append(torch.stack((column, torch.full((images,), distribution)), dim=1))
        first += classes
    return torch.cat(rows)


def million_labels(share: float) -> Tensor:
    """Labels (N, 2) of a million items, shrunk by ``share``; classes of random size, none smaller than M."""
    items, classes = round(share * MILLION), round(share * MILLION_CLASSES)
    rest = np.random.default_rng(0).integers(0, classes, items - M * classes)
    column = np.sort(np.concatenate([np.repeat(np.arange(classes), M), rest]))
    borders = np.round(np.cumsum(SHARES) * classes)
    return torch.from_numpy(np.stack([column, np.searchsorted(borders, column, side="right")], axis=1))


class SamplingWorkload(Workload):
    """What one call does: "epoch" draws the batches of one epoch, "hundred_batches" the next 100 of an endless stream,
    both of a sampler that stands ready; "first_batch" builds the sampler from the labels and draws one batch.

    A sample of "hundred_batches" goes through a whole epoch, so that its start has its share in the figure."""

    case: SamplingCase

    def __init__(self, case: SamplingCase, device: str) -> None:
        super().__init__(case, "cpu")
        self.million = case.source == "million_items"
        self.labels = (million_labels if self.million else joined_labels)(case.share)
        self._samplers: dict[str, Any] = {}
        self._streams: dict[str, Iterator[list[int]]] = {}

    def build(self, contestant: str) -> Iterable[list[int]]:
        """The contestant as an iterable of batches, anew."""
        labels, batch = self.labels, self.case.batch
        # The temperature of the million is in between, which is the most general case.
        m4_balance: Any = 2.0 if self.million else "uniform"
        listed = STRETCH * batch if self.million else len(labels)
        builders: dict[str, Callable[[], Iterable[list[int]]]] = {
            "ours": lambda: MultiDistributionSampler(labels, batch),
            "ours_uniform": lambda: MultiDistributionSampler(labels, batch, balance="uniform"),
            "ours_m4": lambda: MultiDistributionSampler(labels, batch, m=M, balance=m4_balance),
            "pml_m4": lambda: in_batches(MPerClassSampler(labels[:, 0], M, batch, listed), batch),
            "pml_m4_passes": lambda: in_batches(MPerClassSampler(labels[:, 0], M, None, listed), batch),
            "shuffle": lambda: in_batches(RandomSampler(range(len(labels))), batch),
        }
        return builders[contestant]()

    def sampler(self, contestant: str) -> Any:
        """The contestant, built once."""
        if contestant not in self._samplers:
            self._samplers[contestant] = self.build(contestant)
        return self._samplers[contestant]

    def stretch(self, contestant: str) -> list[list[int]]:
        """The next batches of this contestant, one epoch after the other."""
        if contestant not in self._streams:
            self._streams[contestant] = chain.from_iterable(repeat(self.sampler(contestant)))
        return list(islice(self._streams[contestant], STRETCH))

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        if mode == "first_batch":
            return lambda: next(iter(self.build(contestant)))
        if mode == "hundred_batches":
            return lambda: self.stretch(contestant)
        sampler = self.sampler(contestant)
        return lambda: sum(len(batch) for batch in sampler)

    def least_repeats(self, mode: str) -> int:
        """An epoch's worth of stretches. Most have no start of an epoch in them, and a median would leave it out."""
        return math.ceil(self.reference() / STRETCH) if mode == "hundred_batches" else 1

    def reference(self) -> int:
        return len(self.labels) // self.case.batch

    def check(self, contestant: str, reference: int) -> dict[str, float]:
        batches = self.stretch(contestant) if self.million else list(self.sampler(contestant))
        # Without batch_size pml leaves out what would be an incomplete pass over its classes.
        expected = STRETCH if self.million else reference
        if len(batches) != expected and (self.million or contestant != "pml_m4_passes"):
            raise DisagreementError(f"{len(batches)} batches instead of {expected}")
        if any(len(batch) != self.case.batch for batch in batches):
            raise DisagreementError(f"a batch that has not {self.case.batch} items")
        drawn = {index for batch in batches for index in batch}
        if min(drawn) < 0 or max(drawn) >= len(self.labels):
            raise DisagreementError(f"items {min(drawn)} to {max(drawn)}, but there are {len(self.labels)}")
        if "m4" in contestant:
            classes = self.labels[:, 0].numpy()
            counts = {count for batch in batches for count in Counter(classes[batch].tolist()).values()}
            # A batch may lie across two of pml's passes, and then hold a class twice.
            if any(count % M for count in counts) or (contestant != "pml_m4_passes" and counts != {M}):
                raise DisagreementError(f"classes with {sorted(counts)} items in a batch instead of {M}")
        return {}


def in_batches(sampler: Iterable[int], batch: int) -> BatchSampler:
    """A sampler of items as one of full batches."""
    return BatchSampler(sampler, batch, drop_last=True)  # type: ignore[arg-type]


def million_case(settings: Settings) -> SamplingCase:
    """A million items of 20,000 classes; a hundredth of them where things only have to run."""
    return SamplingCase("million_items", 32, 0.01) if settings.smoke else SamplingCase("million_items", 512)


def plans(settings: Settings) -> list[Plan]:
    """The same in every setting of the allocator and on every device."""
    if settings.malloc == "raised":
        return []
    eight = SamplingCase(batch=20, share=0.01) if settings.smoke else SamplingCase()
    million = million_case(settings)
    return [
        Plan(eight, "epoch", CONTESTANTS),
        Plan(million, "first_batch", CONTESTANTS),
        Plan(million, "hundred_batches", CONTESTANTS),
    ]


SUBJECT = Subject("sampling", SamplingWorkload, SamplingCase, plans)
