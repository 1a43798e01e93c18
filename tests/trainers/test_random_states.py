"""Generators that go on where they were, as in every process."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from puma_plugin.trainers.random_states import random_state, set_random_state


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_generator = torch.Generator()


def draws(model: Any) -> list[float]:
    own = torch.rand((), generator=model.gate_generator).item()
    return [random.random(), float(np.random.rand()), torch.rand(()).item(), own]  # noqa: NPY002


def test_generators_go_on_where_they_were() -> None:
    models = {"trunk": Gated()}
    draws(models["trunk"])
    states = random_state(models)
    expected = draws(models["trunk"])
    draws(models["trunk"])
    set_random_state(states, models)
    assert draws(models["trunk"]) == expected
    # A gate generator that the checkpoint does not know is left as it is.
    states[0]["gates"] = {}
    set_random_state(states, models)
    assert draws(models["trunk"])[:3] == expected[:3]


@pytest.mark.parametrize("alike", [True, False])
def test_of_another_number_of_processes_only_those_that_drew_alike_count(alike: bool) -> None:
    models = {"trunk": Gated()}
    (first,) = random_state(models)
    expected = draws(models["trunk"])
    (later,) = random_state(models)
    set_random_state([first, first if alike else later], models)
    assert (draws(models["trunk"]) == expected) == alike


def test_it_is_torchs_generator_by_which_processes_drew_alike() -> None:
    models = {"trunk": Gated()}
    (first,) = random_state(models)
    expected = draws(models["trunk"])
    (later,) = random_state(models)
    for generator, alike in (("python", True), ("torch", False)):
        set_random_state([first, {**first, generator: later[generator]}], models)
        assert (draws(models["trunk"]) == expected) == alike
