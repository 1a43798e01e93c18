"""What an adapted block adds, and in how many passes over memory."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from puma_plugin import adapt
from puma_plugin.models import StochasticAdapter
from puma_plugin.models.adapted_block import _add
from puma_plugin.ops import plain_pytorch


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


class Casts(TorchDispatchMode):
    """Counts the conversions of tensors of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_to_copy" and tuple(args[0].shape) == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_tokens_are_cast_once_under_autocast(make_vit: Callable[..., nn.Module]) -> None:
    """For the frozen branch and the adapter together, in each direction."""
    vit: Any = adapt(make_vit("vit_tiny_patch16_224"), adapter_dim=8, pool_size=0)
    shape = (3, vit.num_prefix_tokens + 4, vit.embed_dim)
    x = torch.randn(shape, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), Casts(shape) as casts:
        out = vit.blocks[0](x)
    assert casts.count == 2  # of norm1's and norm2's output
    with Casts(shape) as casts:
        out.sum().backward()
    # Of their gradients, of those of the two branches' outputs, and of the tokens that are computed once more.
    assert casts.count == 6


def test_a_block_of_meta_tensors(make_vit: Callable[..., nn.Module]) -> None:
    vit: Any = adapt(make_vit("vit_tiny_patch16_224"), adapter_dim=8, pool_size=0).to("meta")
    x = torch.randn(3, 5, vit.embed_dim, device="meta", requires_grad=True)
    out = vit.blocks[0](x)
    assert (out.shape, out.device.type) == (x.shape, "meta")
    out.sum().backward()
    assert vit.blocks[0].adapter1.down.grad.shape == (vit.embed_dim, 8)


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


def test_the_backward_knows_the_norms_weights_of_the_forward(make_vit: Callable[..., nn.Module]) -> None:
    """``functional_call`` gives a module other weights for one call; by the backward they are gone."""
    vit: Any = adapt(make_vit(), adapter_dim=8, pool_size=0, drop=0.0)
    images = torch.randn(2, 3, 32, 32)
    weights = {name: parameter.detach().clone() for name, parameter in vit.named_parameters()}
    for name, weight in weights.items():
        weight.mul_(1.5 if ".norm" in name else 1.0)
        weight.normal_(std=0.3) if name.endswith(".up") else None
        weight.requires_grad_("adapter" in name)

    def gradients() -> list[Tensor]:
        out = torch.func.functional_call(vit, weights, (images,))
        return list(torch.autograd.grad(out.square().sum(), [w for w in weights.values() if w.requires_grad]))

    with plain_pytorch():
        expected = gradients()
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-4)
    # A skeleton without values of its own, as ensembles are computed.
    skeleton = copy.deepcopy(vit).to("meta")
    out = torch.func.functional_call(skeleton, weights, (images,))
    found = torch.autograd.grad(out.square().sum(), [w for w in weights.values() if w.requires_grad])
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_a_norm_that_changed_before_the_backward_are_noticed(make_vit: Callable[..., nn.Module]) -> None:
    """As torch's own layer norm notices it; not a gradient with the new ones."""
    vit: Any = adapt(make_vit(), adapter_dim=8, pool_size=0)
    out = vit(torch.randn(2, 3, 32, 32)).sum()
    with torch.no_grad():
        vit.blocks[1].norm1.weight.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_hooks_on_all_modules_are_obeyed(make_vit: Callable[..., nn.Module]) -> None:
    vit: Any = adapt(make_vit(), adapter_dim=8, pool_size=0, drop=0.0)
    with torch.no_grad():
        for adapter in vit.adapters():
            adapter.up.normal_(std=0.3)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, out: 2 * out if isinstance(module, nn.LayerNorm) else None
    )
    images = torch.randn(2, 3, 32, 32)
    try:
        with plain_pytorch():
            expected = torch.autograd.grad(vit(images).sum(), vit.trainable_parameters())
        found = torch.autograd.grad(vit(images).sum(), vit.trainable_parameters())
    finally:
        handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_mask_may_be_given_by_its_place(make_vit: Callable[..., nn.Module]) -> None:
    plain: Any = make_vit()
    vit: Any = adapt(copy.deepcopy(plain), adapter_dim=8, pool_size=0)
    x, mask = torch.randn(2, 5, vit.embed_dim), torch.randn(5, 5)
    torch.testing.assert_close(vit.blocks[0](x, mask), plain.blocks[0](x, mask))


def test_tokens_that_the_attention_changes_in_place_are_the_adapters_too(make_vit: Callable[..., nn.Module]) -> None:
    """The adapter sees them as they are then, in the backward pass as well."""

    class Greedy(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.mul_(1.5) * 0

    block = adapt(make_vit(), adapter_dim=4, pool_size=0).blocks[0].eval()
    with torch.no_grad():
        block.adapter1.up.normal_()
    block.attn, block.mlp = Greedy(), nn.Identity()
    x = torch.randn(2, 5, 192)
    grad = torch.randn(2, 5, 192)
    block(x).backward(grad)
    found = block.adapter1.down.grad.clone()
    block.adapter1.down.grad = None
    tokens = 1.5 * block.norm1(x)
    middle = x + 0.1 * torch.relu(tokens @ block.adapter1.down) @ block.adapter1.up
    (middle + block.norm2(middle)).backward(grad)
    torch.testing.assert_close(found, block.adapter1.down.grad, rtol=1e-4, atol=1e-4)
