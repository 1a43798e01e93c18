"""When frozen branches go through the compiled operators: the same numbers, and never past what somebody added."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from puma_plugin import adapt, eject
from puma_plugin.models.frozen_branches import run_attention, run_mlp
from puma_plugin.ops import loader

pytestmark = pytest.mark.skipif(
    loader.CPU_MODULE is None or not loader.CPU_MODULE.frozen_mlp_serves(16, 16, 16), reason="no kernel here"
)


def frozen(mlp: nn.Module) -> nn.Module:
    return mlp.requires_grad_(False).eval()


def tokens(width: int = 32) -> Tensor:
    return torch.randn(6, 100, width, generator=torch.Generator().manual_seed(0))


def ran(function: Callable[[], object]) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages()}


def test_the_kernel_runs_for_a_plain_frozen_mlp() -> None:
    mlp = frozen(Mlp(32, 64))
    assert "puma::frozen_mlp" in ran(lambda: run_mlp(mlp, tokens()))
    torch.testing.assert_close(run_mlp(mlp, tokens()), mlp(tokens()))
    mlp = frozen(Mlp(32, 64, bias=False, drop=0.5))  # dropout that does nothing in evaluation
    assert "puma::frozen_mlp" in ran(lambda: run_mlp(mlp, tokens()))
    torch.testing.assert_close(run_mlp(mlp, tokens()), mlp(tokens()))


class OwnMlp(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def trainable() -> nn.Module:
    return Mlp(32, 64)


def with_trainable_bias() -> nn.Module:
    mlp = frozen(Mlp(32, 64))
    mlp.fc2.bias.requires_grad_()
    return mlp


def with_other_gelu() -> nn.Module:
    return frozen(Mlp(32, 64, act_layer=lambda: nn.GELU("tanh")))


def with_other_activation() -> nn.Module:
    return frozen(Mlp(32, 64, act_layer=nn.ReLU))


def with_norm() -> nn.Module:
    return frozen(Mlp(32, 64, norm_layer=nn.LayerNorm))


def with_dropout() -> nn.Module:
    return frozen(Mlp(32, 64, drop=0.5)).train()


def with_hook() -> nn.Module:
    mlp = frozen(Mlp(32, 64))
    mlp.fc1.register_forward_hook(lambda module, args, output: output * 2)
    return mlp


def with_own_forward() -> nn.Module:
    mlp = frozen(Mlp(32, 64))
    plain = mlp.fc2.forward
    mlp.fc2.forward = lambda x: plain(x) + 1
    return mlp


def with_another_layer() -> nn.Module:
    mlp = frozen(Mlp(32, 64))
    mlp.fc1 = nn.Sequential(mlp.fc1, nn.Tanh())
    return mlp


def of_another_class() -> nn.Module:
    return frozen(OwnMlp(32, 64))


@pytest.mark.parametrize(
    "make",
    [
        trainable,
        with_trainable_bias,
        with_other_gelu,
        with_other_activation,
        with_norm,
        with_dropout,
        with_hook,
        with_own_forward,
        with_another_layer,
        of_another_class,
    ],
)
def test_anything_else_is_called_as_it_is(make: Callable[[], nn.Module]) -> None:
    mlp = make()
    assert "puma::frozen_mlp" not in ran(lambda: run_mlp(mlp, tokens()))
    torch.manual_seed(1)
    expected = mlp(tokens())
    torch.manual_seed(1)
    assert torch.equal(run_mlp(mlp, tokens()), expected)


def test_attention_goes_through_the_kernel_whatever_its_linear_layers_are() -> None:
    attention = frozen(Attention(32, 2, qkv_bias=True, attn_drop=0.5))  # dropout that does nothing in evaluation
    torch.testing.assert_close(run_attention(attention, tokens()), attention(tokens()))
    assert "puma::packed_attention" in ran(lambda: run_attention(attention, tokens(), attn_mask=None, is_causal=False))
    attention.qkv.register_forward_hook(lambda module, args, output: output * 2)
    attention.proj = nn.Sequential(attention.proj, nn.Tanh())
    assert "puma::packed_attention" in ran(lambda: run_attention(attention, tokens()))
    torch.testing.assert_close(run_attention(attention, tokens()), attention(tokens()))


class OwnAttention(Attention):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return super().forward(x, attn_mask, is_causal) + 1


def plain_attention(**options: object) -> Attention:
    return frozen(Attention(32, 2, **options))


def with_norms() -> nn.Module:
    return plain_attention(qk_norm=True, norm_layer=nn.LayerNorm)


def with_last_norm() -> nn.Module:
    return plain_attention(scale_norm=True, norm_layer=nn.LayerNorm)


def with_gate() -> nn.Module:
    return plain_attention(gated=True)


def with_attention_dropout() -> nn.Module:
    return plain_attention(attn_drop=0.5).train()


def with_hook_on_the_weights() -> nn.Module:
    attention = plain_attention()
    attention.fused_attn = False  # else there are no weights to look at
    attention.attn_drop.register_forward_hook(lambda module, args, output: output * 2)
    return attention


def with_hook_on_queries() -> nn.Module:
    attention = plain_attention()
    attention.q_norm.register_forward_hook(lambda module, args, output: output * 2)
    return attention


def of_another_attention_class() -> nn.Module:
    return frozen(OwnAttention(32, 2))


@pytest.mark.parametrize(
    "make",
    [
        with_norms,
        with_last_norm,
        with_gate,
        with_attention_dropout,
        with_hook_on_the_weights,
        with_hook_on_queries,
        of_another_attention_class,
    ],
)
def test_any_other_attention_is_called_as_it_is(make: Callable[[], nn.Module]) -> None:
    attention = make()
    assert "puma::packed_attention" not in ran(lambda: run_attention(attention, tokens()))
    torch.manual_seed(1)
    expected = attention(tokens())
    torch.manual_seed(1)
    assert torch.equal(run_attention(attention, tokens()), expected)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(100, 100).tril().bool()}])
def test_masks_go_to_the_attention(options: dict[str, object]) -> None:
    attention = plain_attention()
    assert torch.equal(run_attention(attention, tokens(), **options), attention(tokens(), **options))
    assert not torch.allclose(run_attention(attention, tokens(), **options), attention(tokens()))


def test_an_adapted_model_learns_as_with_torchs_operators() -> None:
    """One step of the same model with a hook on every branch, which keeps the kernels out."""
    torch.manual_seed(0)
    vit = adapt(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96, depth=2), drop=0.0)
    for adapter in vit.adapters():
        nn.init.normal_(adapter.up, std=0.02)
    plain = copy.deepcopy(vit)
    for block in plain.blocks:
        for branch in (block.attn, block.mlp):
            branch.register_forward_hook(lambda module, args, output: None)
    images, direction = torch.randn(16, 3, 96, 96), torch.randn(16, vit.num_features)
    found, expected = (
        torch.autograd.grad((model(images) * direction).sum(), model.trainable_parameters()) for model in (vit, plain)
    )
    kernels = {"puma::frozen_mlp", "puma::packed_attention"}
    assert kernels <= ran(lambda: vit(images))
    assert not kernels & ran(lambda: plain(images))
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()
    weights = {name: tensor.clone() for name, tensor in vit.state_dict().items() if "adapter" not in name}
    assert eject(vit).state_dict().keys() <= weights.keys()
