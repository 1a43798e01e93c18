"""When frozen branches go through the compiled operators: the same numbers, and never past what somebody added."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from puma_plugin import adapt
from puma_plugin.models.frozen_branches import run_attention, run_mlp
from puma_plugin.ops.frozen_mlp import serves as mlp_serves
from puma_plugin.ops.packed_attention import serves as attention_serves

pytestmark = pytest.mark.skipif(not mlp_serves(16, 16, 16), reason="no kernel here")


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


def changed(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    """Makes a frozen MLP, changed."""

    def make() -> nn.Module:
        mlp = frozen(Mlp(32, 64, drop=0.5))
        change(mlp)
        return mlp

    return make


def put(name: str, module: nn.Module) -> Callable[[nn.Module], object]:
    return lambda mlp: setattr(mlp, name, module)


def patch_instance(mlp: nn.Module) -> None:
    plain = mlp.fc2.forward
    mlp.fc2.forward = lambda x: plain(x) + 1


OTHER_MLPS: dict[str, Callable[[], nn.Module]] = {
    "trainable": changed(lambda mlp: mlp.requires_grad_()),
    "trainable bias": changed(lambda mlp: mlp.fc2.bias.requires_grad_()),
    "another GELU": changed(put("act", nn.GELU("tanh"))),
    "another activation": changed(put("act", nn.ReLU())),
    "a norm": changed(put("norm", nn.LayerNorm(64))),
    "training": changed(lambda mlp: mlp.train()),
    "dropout alone in training": changed(lambda mlp: mlp.drop1.train()),
    "last dropout alone in training": changed(lambda mlp: mlp.drop2.train()),
    "a module in dropout's place": changed(put("drop2", nn.Tanh())),
    "another layer": changed(lambda mlp: setattr(mlp, "fc1", nn.Sequential(mlp.fc1, nn.Tanh()))),
    "another class": lambda: frozen(OwnMlp(32, 64)),
    "forward hook": changed(lambda mlp: mlp.fc1.register_forward_hook(lambda module, args, output: output * 2)),
    "forward pre-hook": changed(lambda mlp: mlp.act.register_forward_pre_hook(lambda module, args: (args[0] * 2,))),
    "backward hook": changed(lambda mlp: mlp.norm.register_full_backward_hook(lambda module, grads, outputs: None)),
    "backward pre-hook": changed(lambda mlp: mlp.fc2.register_full_backward_pre_hook(lambda module, grads: None)),
    "forward of the instance": changed(patch_instance),
}


@pytest.mark.parametrize("name", OTHER_MLPS)
def test_any_other_mlp_is_called_as_it_is(name: str) -> None:
    mlp = OTHER_MLPS[name]()
    assert "puma::frozen_mlp" not in ran(lambda: run_mlp(mlp, tokens()))
    torch.manual_seed(1)
    expected = mlp(tokens())
    torch.manual_seed(1)
    assert torch.equal(run_mlp(mlp, tokens()), expected)


def test_hooks_on_all_modules_and_patched_classes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, attention = frozen(Mlp(32, 64)), frozen(Attention(32, 2))
    calls: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        run_mlp(mlp, tokens())
        run_attention(attention, tokens())
    finally:
        handle.remove()
    assert {"Mlp", "GELU", "Attention", "Identity"} <= set(calls)
    monkeypatch.setattr(Mlp, "forward", lambda self, x: x + 1)
    monkeypatch.setattr(Attention, "forward", lambda self, x: x + 2)
    assert torch.equal(run_mlp(mlp, tokens()), tokens() + 1)
    assert torch.equal(run_attention(attention, tokens()), tokens() + 2)


def test_a_compiled_mlp_is_called() -> None:
    mlp = frozen(Mlp(32, 64))
    mlp.compile(backend="eager")
    assert "puma::frozen_mlp" not in ran(lambda: run_mlp(mlp, tokens()))


def test_attention_goes_through_the_kernel_whatever_its_linear_layers_are() -> None:
    attention = frozen(Attention(32, 2, qkv_bias=True, attn_drop=0.5))  # dropout that does nothing in evaluation
    torch.testing.assert_close(run_attention(attention, tokens()), attention(tokens()))
    assert "puma::packed_attention" in ran(lambda: run_attention(attention, tokens(), attn_mask=None, is_causal=False))
    attention.qkv.register_forward_hook(lambda module, args, output: output * 2)
    attention.proj = nn.Sequential(attention.proj, nn.Tanh())
    attention.proj_drop = nn.Softplus()
    assert "puma::packed_attention" in ran(lambda: run_attention(attention, tokens()))
    torch.testing.assert_close(run_attention(attention, tokens()), attention(tokens()))


@pytest.mark.parametrize("autocast", [True, False])
def test_attention_in_bfloat16_and_under_autocast(autocast: bool) -> None:
    attention, x = frozen(Attention(32, 2, qkv_bias=True)), tokens()
    if not autocast:
        attention, x = attention.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = run_attention(attention, x), attention(x)
        by_operator = "puma::packed_attention" in ran(lambda: run_attention(attention, x))
    assert by_operator == attention_serves(100, 16, torch.bfloat16)
    assert found.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_a_layer_of_another_width_is_refused_as_by_timm() -> None:
    attention = frozen(Attention(32, 2))
    attention.qkv = nn.Linear(32, 48)
    with pytest.raises(RuntimeError):
        attention(tokens())
    with pytest.raises(RuntimeError):
        run_attention(attention, tokens())


class OwnAttention(Attention):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return super().forward(x, attn_mask, is_causal) + 1


def attention_with(change: Callable[[nn.Module], object] | None = None, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        attention = frozen(Attention(32, 2, **options))
        if change is not None:
            change(attention)
        return attention

    return make


OTHER_ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "norms of queries and keys": attention_with(qk_norm=True, norm_layer=nn.LayerNorm),
    "a norm behind": attention_with(scale_norm=True, norm_layer=nn.LayerNorm),
    "a gate": attention_with(gated=True),
    "dropout in training": attention_with(lambda attention: attention.train(), attn_drop=0.5),
    "step by step": attention_with(lambda attention: setattr(attention, "fused_attn", False)),
    "hook on queries": attention_with(
        lambda attention: attention.q_norm.register_forward_hook(lambda module, args, output: output * 2)
    ),
    "hook on attention": attention_with(
        lambda attention: attention.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    ),
    "another class": lambda: frozen(OwnAttention(32, 2)),
}


@pytest.mark.parametrize("name", OTHER_ATTENTIONS)
def test_any_other_attention_is_called_as_it_is(name: str) -> None:
    attention = OTHER_ATTENTIONS[name]()
    assert "puma::packed_attention" not in ran(lambda: run_attention(attention, tokens()))
    torch.manual_seed(1)
    expected = attention(tokens())
    torch.manual_seed(1)
    assert torch.equal(run_attention(attention, tokens()), expected)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(100, 100).tril().bool()}])
def test_masks_go_to_the_attention(options: dict[str, Any]) -> None:
    attention = frozen(Attention(32, 2))
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


@pytest.mark.parametrize("hooked", [False, True])
def test_compiled_models_use_the_kernels_where_eager_ones_do(hooked: bool, graphs: Any) -> None:
    torch.manual_seed(0)
    vit = adapt(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96, depth=2), drop=0.0)
    if hooked:
        for block in vit.blocks:
            for branch in (block.attn, block.mlp):
                branch.register_forward_hook(lambda module, args, output: None)
    compiled, images = torch.compile(vit, fullgraph=True, backend=graphs.backend), torch.randn(16, 3, 96, 96)
    found, expected = (
        torch.autograd.grad(model(images).square().sum(), vit.trainable_parameters()) for model in (compiled, vit)
    )
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    kernels = {f"puma.{name}{end}.default" for name in ("frozen_mlp", "packed_attention") for end in ("", "_backward")}
    assert kernels & graphs.operators == (set() if hooked else kernels)
