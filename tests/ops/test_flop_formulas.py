"""What torch's FlopCounterMode counts is what it counts for the definition in plain PyTorch."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import puma_plugin
from puma_plugin.ops import flop_formulas, match_prompts, plain_pytorch, stochastic_adapter


def counted(work: Callable[[], Tensor], plain: bool = False) -> int:
    """Operations of the result and, where it has a gradient, of its backward."""
    with plain_pytorch() if plain else nullcontext(), FlopCounterMode(display=False) as mode:
        result = work()
        if result.requires_grad:
            result.backward()
    return int(mode.get_total_flops())


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_adapter(tokens: bool, weights: bool) -> None:
    x = torch.randn(3, 5, 8, requires_grad=tokens)
    down, up = torch.randn(8, 4, requires_grad=weights), torch.randn(4, 8, requires_grad=weights)
    gate = torch.tensor([0.0, 2.0, 2.0])  # counted as if none were skipped
    product = 2 * 3 * 5 * 8 * 4
    expected = product * (2 + (tokens or weights) + tokens + 2 * weights)
    for plain in (False, True):
        found = counted(lambda: stochastic_adapter(torch.zeros(3, 5, 8), x, down, up, gate).sum(), plain)
        assert found == expected


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("query", [False, True])
def test_prompts(query: bool, pool: bool, with_prompt: bool) -> None:
    q = torch.randn(3, 8, requires_grad=query)
    keys, attention, prompts = (torch.randn(*shape, 8, requires_grad=pool) for shape in ((6,), (6,), (6, 2)))

    def work() -> Tensor:
        prompt, weights = match_prompts(q, keys, attention, prompts)
        return weights.sum() + (prompt.sum() if with_prompt else 0)

    match, summed = 2 * 2 * 3 * 6 * 8, 2 * 3 * 6 * 2 * 8
    found, definition = counted(work), counted(work, plain=True)
    if pool or not query:  # the kernel makes the gradients of the pool in any case
        assert found == definition
    backward = (pool or query) * (match * (1 + query) + with_prompt * 2 * summed)
    assert found == match + summed + backward


@pytest.mark.parametrize("train", [False, True])
def test_a_whole_model(train: bool) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    bare = counted(lambda: model(torch.zeros(2, 3, 32, 32)).sum().detach())
    vit = puma_plugin.adapt(model, adapter_dim=16, pool_size=4, drop=0.0).train(train)
    images = torch.randn(2, 3, 32, 32)
    with torch.set_grad_enabled(train):
        found, definition = (counted(lambda: vit(images).sum(), plain) for plain in (False, True))
    assert found == definition > 1.2 * bare


def test_loading_the_package_anew_registers_nothing_twice() -> None:
    flop_formulas.register()
