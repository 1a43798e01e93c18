"""Which classes of a distribution are near each other, by a plain loop."""

import numpy as np
import pytest
import torch

from puma_plugin.samplers.nearest_classes import nearest_classes

HOMES = np.array([0, 2, 1, 2, 0, 2, 2, 0, 2, 2])  # classes of distribution 1 have no neighbours


@pytest.mark.parametrize("block_size", [1, 2, 1024])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_most_similar_of_the_same_distribution_come_first(count: int, block_size: int) -> None:
    # Of different lengths, as proxies are: their directions count.
    proxies = torch.randn(10, 5) * torch.linspace(0.1, 10, 10)[:, None]
    expected = []
    for own, home in enumerate(HOMES.tolist()):
        others = [other for other in range(10) if HOMES[other] == home and other != own]
        others.sort(key=lambda other: -torch.cosine_similarity(proxies[own], proxies[other], dim=0).item())
        expected.append([*others, *[-1] * count][:count])
    for given in (proxies, proxies.numpy(), torch.nn.Parameter(proxies.double())):
        assert nearest_classes(given, HOMES, count, block_size).tolist() == expected


def test_refusals() -> None:
    for wrong in (torch.randn(9, 5), torch.randn(5, 10), torch.randn(10)):
        with pytest.raises(
            ValueError, match=r"proxies must have shape \(10, D\), one row per class number, .*W\.t\(\)"
        ):
            nearest_classes(wrong, HOMES, 2)
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        nearest_classes(torch.randn(10, 5), HOMES, 0)


def test_proxies_that_are_not_finite_are_refused() -> None:
    proxies = torch.randn(4, 3)
    proxies[2, 1] = torch.nan
    with pytest.raises(ValueError, match="proxies must be finite, row 2 is not"):
        nearest_classes(proxies, np.array([0, 0, 1, 1]), 1)
