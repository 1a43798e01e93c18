"""Random transforms that follow from the item alone."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class SeededItems(Dataset[Any]):
    """Reads items so that their random transforms follow from (seed, pass, position) and nothing else.

    So neither the number of processes and workers nor an interruption changes what an image looks like. The generators
    of Python, NumPy and torch (CPU) are seeded for each item, and set back afterwards.

    Args:
        dataset: the items.
        seed: of the run.

    Items are asked for as (pass, position).
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        number, position = key
        sequence = np.random.SeedSequence((self.seed, number, position))
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        first, second = sequence.generate_state(2, np.uint64).tolist()
        random.seed(first)
        np.random.seed(second % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(first >> 1)
        try:
            return self.dataset[position]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])
