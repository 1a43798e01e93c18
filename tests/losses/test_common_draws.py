"""Draws that are the same in every process, and leave the generators alone."""

import contextlib

import pytest
import torch

from puma_plugin.losses.common_draws import drawn_from, state_digest

CPU = torch.device("cpu")


def test_the_seed_decides_inside_and_nothing_has_happened_behind() -> None:
    torch.manual_seed(1)
    digest = state_digest(CPU)
    with drawn_from(7, CPU):
        first = torch.rand(3)
    assert state_digest(CPU) == digest
    torch.manual_seed(2)
    with drawn_from(7, CPU):
        assert torch.equal(torch.rand(3), first)
    with drawn_from(8, CPU):
        assert not torch.equal(torch.rand(3), first)


def test_generators_are_put_back_after_an_error() -> None:
    digest = state_digest(CPU)
    with contextlib.suppress(KeyError), drawn_from(7, CPU):
        torch.rand(3)
        raise KeyError
    assert state_digest(CPU) == digest


def test_every_draw_gives_another_digest() -> None:
    torch.manual_seed(1)
    found = [state_digest(CPU)]
    for _ in range(3):
        torch.rand(())
        found.append(state_digest(CPU))
    assert len(set(found)) == 4
    torch.manual_seed(1)
    assert state_digest(CPU) == found[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    digest = state_digest(device)
    with drawn_from(7, device):
        first = float(torch.rand((), device=device))
    assert state_digest(device) == digest
    torch.rand((), device=device)
    assert state_digest(device) != digest
    with drawn_from(7, device):
        assert float(torch.rand((), device=device)) == first
