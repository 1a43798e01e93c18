"""Random transforms follow from the item alone, whoever reads it."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.trainers.recorded_batches import RecordedBatches
from puma_plugin.trainers.seeded_items import SeededItems


class Draws(Dataset[Any]):
    """Items of one number from each generator that transforms use."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index), torch.rand(()).item(), random.random(), np.random.rand()])  # noqa: NPY002


def read(workers: int, rank: int, world_size: int, seed: int = 0) -> dict[tuple[int, int], list[float]]:
    """(pass, item) -> numbers, of two passes."""
    labels = torch.stack([torch.arange(20) % 4, torch.zeros(20, dtype=torch.int64)], dim=1)
    sampler = MultiDistributionSampler(labels, 4, rank=rank, world_size=world_size)
    batches = RecordedBatches(sampler, 4, with_pass=True)
    loader = DataLoader(SeededItems(Draws(), seed), batch_sampler=batches, num_workers=workers)
    found = {}
    for number in range(2):
        batches.pass_number = number
        for batch in loader:
            found.update({(number, int(row[0])): row[1:].tolist() for row in batch})
            assert batches.pending.popleft() == batch[:, 0].long().tolist()
    return found


def test_processes_and_workers_change_nothing() -> None:
    alone = read(0, 0, 1)
    assert len(alone) == 40
    assert read(2, 0, 1) == alone
    assert {**read(1, 0, 2), **read(0, 1, 2)} == alone


def test_every_item_pass_and_seed_has_its_own_numbers() -> None:
    first, other = read(0, 0, 1), read(0, 0, 1, seed=1)
    numbers = [value for values in [*first.values(), *other.values()] for value in values]
    assert len(set(numbers)) == len(numbers)


def test_other_draws_are_left_alone() -> None:
    items = SeededItems(Draws(), 0)

    def draws(between: bool) -> list[float]:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        if between:
            items[0, 3]
        return [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002

    assert draws(True) == draws(False)


def test_read_through_a_unified_dataset() -> None:
    noise = UnifiedDataset(
        {"a": [(torch.zeros(3, 2, 2), index % 2) for index in range(4)]}, lambda image: image + torch.rand(3, 2, 2)
    )
    items = SeededItems(noise, 7)
    first, again, later = (items[key][0] for key in ((0, 1), (0, 1), (1, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
