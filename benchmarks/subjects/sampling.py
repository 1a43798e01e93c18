"""Drawing the batches of one epoch over eight joined datasets: ours, pml's MPerClassSampler, plain shuffling."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler

from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Plan, Workload
from benchmarks.timing import Call
from puma_plugin.samplers import MultiDistributionSampler

# Training classes and images of the paper's eight datasets (arXiv 2309.08944): birds, cars, products, clothes, NABirds,
# dogs, flowers, aircraft.
DATASETS = (
    (100, 5_864),
    (98, 8_054),
    (11_318, 59_551),
    (3_997, 25_882),
    (278, 22_909),
    (60, 10_290),
    (51, 3_493),
    (50, 5_000),
)


@dataclass(frozen=True)
class SamplingCase:
    """One epoch over datasets of a ``share`` of the paper's sizes, in batches of ``batch``."""

    batch: int = 180
    share: float = 1.0

    @property
    def id(self) -> str:
        return f"eight_datasets-B{self.batch}-x{self.share:g}"


def joined_labels(share: float) -> Tensor:
    """Labels (N, 2) int64, (class, distribution), of the eight training sets, shrunk by ``share``."""
    rows, first = [], 0
    for distribution, sizes in enumerate(DATASETS):
        classes, images = (max(2, round(share * size)) for size in sizes)
        column = first + torch.arange(images) % classes
        rows.append(torch.stack((column, torch.full((images,), distribution)), dim=1))
        first += classes
    return torch.cat(rows)


class SamplingWorkload(Workload):
    """One call makes a sampler's batches of one epoch; building the sampler is not part of it."""

    case: SamplingCase

    def __init__(self, case: SamplingCase, device: str) -> None:
        super().__init__(case, "cpu")
        self.labels = joined_labels(case.share)
        self._samplers: dict[str, Any] = {}

    def sampler(self, contestant: str) -> Iterable[list[int]]:
        """The contestant as an iterable of batches."""
        if contestant not in self._samplers:
            self._samplers[contestant] = self._make(contestant)
        return self._samplers[contestant]

    def _make(self, contestant: str) -> Iterable[list[int]]:
        batch = self.case.batch
        builders: dict[str, Callable[[], Iterable[list[int]]]] = {
            "ours": lambda: MultiDistributionSampler(self.labels, batch),
            "ours_m4_uniform": lambda: MultiDistributionSampler(self.labels, batch, m=4, balance="uniform"),
            "pml_m4": lambda: BatchSampler(
                MPerClassSampler(self.labels[:, 0], m=4, batch_size=batch, length_before_new_iter=len(self.labels)),
                batch,
                drop_last=True,
            ),
            "shuffle": lambda: BatchSampler(RandomSampler(range(len(self.labels))), batch, drop_last=True),
        }
        return builders[contestant]()

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        sampler = self.sampler(contestant)
        return lambda: sum(len(batch) for batch in sampler)

    def reference(self) -> int:
        return len(self.labels) // self.case.batch

    def check(self, contestant: str, reference: int) -> dict[str, float]:
        batches = [list(batch) for batch in self.sampler(contestant)]
        drawn = {index for batch in batches for index in batch}
        if len(batches) != reference or any(len(batch) != self.case.batch for batch in batches):
            raise DisagreementError(f"{len(batches)} batches instead of {reference} of {self.case.batch} items")
        if min(drawn) < 0 or max(drawn) >= len(self.labels):
            raise DisagreementError(f"items {min(drawn)} to {max(drawn)}, but there are {len(self.labels)}")
        return {}


def plans(settings: Settings) -> list[Plan]:
    """One epoch; the same in every setting of the allocator and on every device."""
    if settings.malloc == "raised":
        return []
    share = 0.01 if settings.smoke else 1.0
    contestants = ("ours", "ours_m4_uniform", "pml_m4", "shuffle")
    return [Plan(SamplingCase(20 if settings.smoke else 180, share), "epoch", contestants)]
