"""What an adapted block adds, and in how many passes over memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from puma_plugin import adapt
from puma_plugin.models import StochasticAdapter
from puma_plugin.models.adapted_block import _add


class Sums(TorchDispatchMode):
    """Records the shapes of all sums of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::add", "aten::add_"):
            self.shapes.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("autocast", [False, True])
def test_stream_branch_and_adapter_are_added_in_one_pass(
    make_vit: Callable[..., nn.Module], name: str, autocast: bool
) -> None:
    vit: Any = adapt(make_vit(name), adapter_dim=8, pool_size=0)
    tokens = vit.num_prefix_tokens + 4
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast), Sums() as sums:
        x = torch.randn(3, tokens, vit.embed_dim)
        for block in vit.blocks:
            x = block(x)
    assert x.dtype == torch.float32
    assert (3, tokens, vit.embed_dim) not in sums.shapes


@pytest.mark.parametrize(
    ("stream", "branch_dtype", "result"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),  # wider than the stream, as a float32 layer scale makes it
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_sum_has_the_dtype_it_has_in_the_frozen_model(
    stream: torch.dtype, branch_dtype: torch.dtype, result: torch.dtype
) -> None:
    adapter = StochasticAdapter(6, 4, drop=0.0, dtype=torch.bfloat16)
    nn.init.normal_(adapter.up)
    x, branch = torch.randn(2, 3, 6).to(stream), torch.randn(2, 3, 6).to(branch_dtype)
    tokens = torch.randn(2, 3, 6, dtype=torch.bfloat16)
    out: Tensor = _add(adapter, x, branch, tokens, None)
    assert out.dtype == (x + branch).dtype == result
    torch.testing.assert_close(out, adapter(x.float() + branch.float(), tokens))
