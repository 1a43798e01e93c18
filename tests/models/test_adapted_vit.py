"""The adapted model against a forward pass written out by hand, and its own methods."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from puma_plugin import adapt, eject
from puma_plugin.models import PromptPool, StochasticAdapter

HEADS = 3


def by_hand(weights: dict[str, Tensor], images: Tensor, gates: list[Tensor] | None = None) -> Tensor:
    """Tokens (B, 1 + L + N, C) after the last norm of an adapted plain ViT, from its state dict alone."""
    w = weights
    patches = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16).flatten(2).mT
    class_token = w["cls_token"][0].expand(len(images), 1, -1) + w["pos_embed"][0, :1]
    x = [class_token, patches + w["pos_embed"][0, 1:]]
    if "prompt_pool.keys" in w:
        query = (patches.mean(1) + patches.amax(1)) / 2
        focused = query[:, None] * w["prompt_pool.attention"].softmax(-1)  # (B, M, C)
        alpha = F.cosine_similarity(focused, w["prompt_pool.keys"][None], dim=-1)
        prompt = torch.einsum("bm,mlc->blc", alpha, w["prompt_pool.prompts"]) + w["pos_embed"][0, :1]
        x.insert(1, prompt)
    x = torch.cat(x, dim=1)
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    draws = iter(gates or [])

    def adapter(name: str, tokens: Tensor) -> Tensor:
        if f"{name}.down" not in w:
            return torch.zeros_like(tokens)
        out = 0.1 * F.relu(tokens @ w[f"{name}.down"]) @ w[f"{name}.up"]
        return out if gates is None else out * next(draws)[:, None, None]

    for i in range(depth):
        block = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        h = F.layer_norm(x, x.shape[-1:], block["norm1.weight"], block["norm1.bias"], 1e-6)
        qkv = F.linear(h, block["attn.qkv.weight"], block["attn.qkv.bias"])
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        attended = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v
        attended = F.linear(attended.transpose(1, 2).flatten(2), block["attn.proj.weight"], block["attn.proj.bias"])
        x = x + attended + adapter(f"blocks.{i}.adapter1", h)
        h = F.layer_norm(x, x.shape[-1:], block["norm2.weight"], block["norm2.bias"], 1e-6)
        hidden = F.gelu(F.linear(h, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + F.linear(hidden, block["mlp.fc2.weight"], block["mlp.fc2.bias"]) + adapter(f"blocks.{i}.adapter2", h)
    return F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"], 1e-6)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, dtype=torch.float64)


@pytest.fixture
def vit(make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None]) -> nn.Module:
    vit = adapt(make_vit().double(), adapter_dim=8, pool_size=3, prompt_length=2)
    randomize(vit)
    return vit


def test_evaluation_by_hand(vit: nn.Module, images: Tensor) -> None:
    expected = by_hand(vit.state_dict(), images)
    features = vit.eval().forward_features(images)
    torch.testing.assert_close(features, torch.cat([expected[:, :1], expected[:, 3:]], dim=1))
    torch.testing.assert_close(vit(images), expected[:, 0])


def test_training_by_hand_with_the_gates_that_were_drawn(vit: nn.Module, images: Tensor) -> None:
    gates: list[Tensor] = []
    for adapter in vit.adapters():
        adapter.register_forward_pre_hook(lambda *_: gates.append(torch.get_rng_state()))
    vit.train()
    out = vit(images)
    state = torch.get_rng_state()
    for i, before in enumerate(gates):
        torch.set_rng_state(before)
        gates[i] = vit.adapters()[i].draw_gate(4, images.device).double()
    torch.set_rng_state(state)
    assert len({tuple(gate.tolist()) for gate in gates}) > 1  # each adapter draws its own
    torch.testing.assert_close(out, by_hand(vit.state_dict(), images, gates)[:, 0])


def test_gradients_by_hand(vit: nn.Module, images: Tensor) -> None:
    vit.eval()
    vit(images).square().sum().backward()
    copies = {name: tensor.detach().clone() for name, tensor in vit.state_dict().items()}
    trainable = {name: copies[name].requires_grad_() for name, p in vit.named_parameters() if p.requires_grad}
    by_hand(copies, images)[:, 0].square().sum().backward()
    assert len(trainable) == 2 * 2 * 2 + 3
    for name, copied in trainable.items():
        torch.testing.assert_close(vit.get_parameter(name).grad, copied.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_adapters_in_chosen_blocks_only(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    vit = adapt(make_vit(depth=3).double(), adapter_dim=8, pool_size=0, blocks=[2, 0])
    for adapter in vit.adapters():
        nn.init.normal_(adapter.up)
    assert [name for name, module in vit.named_modules() if isinstance(module, StochasticAdapter)] == [
        f"blocks.{i}.adapter{j}" for i in (0, 2) for j in (1, 2)
    ]
    torch.testing.assert_close(vit.eval()(images), by_hand(vit.state_dict(), images)[:, 0])


def test_prompts_only(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    vit = adapt(make_vit().double(), blocks=[], pool_size=3, prompt_length=2)
    assert {name for name, p in vit.named_parameters() if p.requires_grad} == {
        "prompt_pool.prompts",
        "prompt_pool.keys",
        "prompt_pool.attention",
    }
    torch.testing.assert_close(vit.eval()(images), by_hand(vit.state_dict(), images)[:, 0])


def test_norms_are_computed_once(vit: nn.Module, images: Tensor) -> None:
    calls = []
    for block in vit.blocks:
        for norm in (block.norm1, block.norm2):
            norm.register_forward_hook(lambda module, *_: calls.append(module))
    vit(images)
    assert len(calls) == 4


def test_adapter_output_does_not_pass_layer_scale(make_vit: Callable[..., nn.Module]) -> None:
    vit = adapt(make_vit("deit3_small_patch16_224"), adapter_dim=8, pool_size=0)
    with torch.no_grad():
        for adapter in vit.adapters():
            adapter.up.fill_(0.1)
        for block in vit.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
    tokens = torch.randn(1, 5, 384)
    block = vit.blocks[0].eval()
    u = tokens + 0.1 * F.relu(block.norm1(tokens) @ block.adapter1.down) @ block.adapter1.up
    expected = u + 0.1 * F.relu(block.norm2(u) @ block.adapter2.down) @ block.adapter2.up
    torch.testing.assert_close(block(tokens), expected)


@pytest.mark.parametrize("blocks", [None, (1,), ()])
def test_only_the_own_part_follows_train(make_vit: Callable[..., nn.Module], blocks: tuple[int, ...] | None) -> None:
    vit = make_vit(drop_path_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5, pos_drop_rate=0.5)
    adapt(vit, adapter_dim=8, pool_size=3, prompt_length=2, drop=0.0, blocks=blocks)
    own = (StochasticAdapter, PromptPool)
    assert all(not module.training for module in vit.modules())  # the model was in evaluation mode
    vit.train()
    frozen = [m for m in vit.modules() if not isinstance(m, own) and m is not vit and m not in list(vit.blocks)]
    assert all(module.training for module in vit.modules() if isinstance(module, own))
    assert not any(module.training for module in frozen)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(vit(images), vit(images))  # none of the dropouts above is active
    vit.blocks.train()
    assert not any(module.training for module in frozen if module is not vit.blocks)
    for block in vit.blocks:
        block.train()
    assert not any(module.training for module in frozen if module is not vit.blocks)
    assert torch.equal(vit(images), vit(images))
    vit.eval()
    assert all(not module.training for module in vit.modules())
    twin = pickle.loads(pickle.dumps(vit))
    twin.blocks.train()
    assert not any(module.training for block in twin.blocks for module in block.attn.modules())
    eject(vit)
    assert all(type(block) is Block for block in vit.blocks)


def test_eject_leaves_nothing_behind(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    before, names = dict(vit.state_dict()), set(vit.__dict__)
    adapt(vit, adapter_dim=8, pool_size=3, prompt_length=2)
    vit.gate_generator = torch.Generator()
    eject(vit)
    assert vit.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert set(vit.__dict__) == names
    for name in ("prompt_pool", "adaptation", "gate_generator", "prompt_penalty"):
        assert not hasattr(vit, name)


def test_statistics_of_batch_norm_do_not_move(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit("vit_small_resnet26d_224", depth=1, img_size=64).train()
    norms = [module for module in vit.modules() if isinstance(module, nn.BatchNorm2d)]
    before = {name: buffer.clone() for name, buffer in vit.named_buffers() if "running" in name}
    assert len(before) == 2 * len(norms) > 0
    adapt(vit, adapter_dim=4, pool_size=2).train()
    vit(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(vit.get_buffer(name), buffer) for name, buffer in before.items())
    eject(vit)
    assert all(module.training for module in norms)


def test_model_in_training_mode_stays_in_it(make_vit: Callable[..., nn.Module]) -> None:
    vit = adapt(make_vit().train(), adapter_dim=8)
    assert vit.training
    assert vit.prompt_pool.training
    assert not vit.patch_embed.training


def test_gate_generator_alone_decides_the_gates(vit: nn.Module, images: Tensor) -> None:
    vit.train()
    vit.gate_generator = torch.Generator().manual_seed(1)
    state = torch.get_rng_state()
    first, second = vit(images), vit(images)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    vit.gate_generator.manual_seed(1)
    assert torch.equal(first, vit(images))
    assert torch.equal(second, vit.forward_features(images)[:, 0])


def test_given_gates(vit: nn.Module, images: Tensor) -> None:
    vit.train()
    shut, open_ = ([torch.full((len(images),), value) for _ in vit.adapters()] for value in (0.0, 1.0))
    with vit.given_gates(shut):
        dropped = vit(images)
        with vit.given_gates(open_):
            kept = vit(images)
        torch.testing.assert_close(vit(images), dropped)  # the outer ones again
    assert not torch.allclose(kept, dropped)
    vit.set_grad_checkpointing()
    refused = pytest.raises(ValueError, match=r"computed once more in the backward .* BatchShare\(model, max_batch\)")
    with refused, vit.given_gates(open_):
        pass
    with vit.given_gates([None] * len(open_)):  # none to be drawn again
        vit(images)
    with vit.eval().given_gates(open_):
        vit(images)


def test_gate_generators_of_two_models_in_two_threads(make_vit: Callable[..., nn.Module], images: Tensor) -> None:
    models = [adapt(make_vit().double(), adapter_dim=8, pool_size=0).train() for _ in range(2)]
    for model in models:
        for adapter in model.adapters():
            torch.nn.init.normal_(adapter.up)

    def run(index: int, found: list[Tensor]) -> None:
        model: Any = models[index]
        model.gate_generator = torch.Generator().manual_seed(index)
        found.extend(model(images) for _ in range(10))

    alone: list[list[Tensor]] = [[], []]
    together: list[list[Tensor]] = [[], []]
    for index in range(2):
        run(index, alone[index])
    threads = [threading.Thread(target=run, args=(index, together[index])) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, together, strict=True):
        torch.testing.assert_close(found, expected)


def test_prompt_weights(vit: nn.Module, images: Tensor) -> None:
    weights = vit.prompt_weights(images)
    patches = vit.patch_embed(images)
    focused = ((patches.mean(1) + patches.amax(1)) / 2)[:, None] * vit.prompt_pool.attention.softmax(-1)
    torch.testing.assert_close(weights, F.cosine_similarity(focused, vit.prompt_pool.keys[None], dim=-1))
    assert not weights.requires_grad


def test_query_takes_no_gradient(vit: nn.Module, images: Tensor) -> None:
    patches = torch.randn(2, 4, 192, dtype=torch.float64, requires_grad=True)
    assert not vit.prompt_query(patches).requires_grad


def test_penalty_is_the_pools_and_zero_without_prompts(make_vit: Callable[..., nn.Module], vit: nn.Module) -> None:
    assert torch.equal(vit.prompt_penalty(), vit.prompt_pool.penalty())
    plain = adapt(make_vit(), pool_size=0, adapter_dim=8)
    assert plain.prompt_penalty() == 0
    with pytest.raises(ValueError, match="pool_size=0"):
        plain.prompt_weights(torch.randn(1, 3, 32, 32))


def test_param_groups_have_the_papers_factors(vit: nn.Module) -> None:
    groups = {group["name"]: group for group in vit.param_groups(lr=1e-4, weight_decay=1e-4)}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "adapters": pytest.approx(1e-3),
        "prompts": pytest.approx(1e-3),
    }
    assert all(group["weight_decay"] == 1e-4 for group in groups.values())
    assert sum(len(group["params"]) for group in groups.values()) == len(vit.trainable_parameters()) == 11
    torch.optim.AdamW(vit.param_groups())


def test_param_groups_of_what_was_added_later(vit: nn.Module) -> None:
    vit.reset_classifier(5)
    groups = {group["name"]: group for group in vit.param_groups(lr=0.1, adapter_factor=2, other_factor=3)}
    assert groups["other"]["params"] == [vit.head.weight, vit.head.bias]
    assert groups["other"]["lr"] == pytest.approx(0.3)
    assert groups["adapters"]["lr"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="factor of prompts"):
        vit.param_groups(prompt_factor=-1)
    with pytest.raises(ValueError, match="lr "):
        vit.param_groups(lr=-1)


def test_repr_tells_what_was_added(vit: nn.Module) -> None:
    text = repr(vit)
    count = 4 * 2 * 192 * 8 + 3 * 2 * 192 + 2 * 3 * 192
    assert "AdaptedVisionTransformer(" in text
    assert "adapters: 4 of 192 -> 8 -> 192, drop=0.5, scale=0.1" in text
    assert "prompts: 3 prompts of 2 x 192" in text
    assert f"trainable: {count:,} of " in text


def test_a_few_steps_of_training_change_the_own_part_only(vit: nn.Module, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    optimizer = torch.optim.AdamW(vit.param_groups(lr=1e-3))
    target = torch.randn(4, 192, dtype=torch.float64)
    vit.train()
    losses = []
    for _ in range(12):
        loss = F.mse_loss(vit(images), target) + vit.prompt_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    own = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    changed = {name for name, tensor in vit.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == own


def test_adapters_keep_the_norms_input_not_its_output(vit: nn.Module, images: Tensor) -> None:
    """Of each norm, its input and output of shape (B, N, C): only the input, which the norm keeps, may be kept."""
    outputs: list[Tensor] = []
    kept: list[Tensor] = []
    vit.train()
    # With hooks the adapters would have to keep the outputs, so they are looked at in a pass of their own.
    hooks = [
        norm.register_forward_hook(lambda module, inputs, out: outputs.append(out.detach().clone()))
        for block in vit.blocks
        for norm in (block.norm1, block.norm2)
    ]
    torch.manual_seed(1)
    vit(images)
    for hook in hooks:
        hook.remove()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        vit(images)
    assert len(outputs) == 4
    assert len(kept) > 10
    assert not any(torch.equal(out, tensor) for out in outputs for tensor in kept)


def test_a_hook_on_the_norm_is_called_once_and_obeyed(vit: nn.Module, images: Tensor) -> None:
    calls = []
    hook = vit.blocks[0].norm1.register_forward_hook(lambda *arguments: calls.append(1) or 2 * arguments[2])
    vit.eval()
    vit(images).sum().backward()
    doubled = vit.blocks[0].adapter1.down.grad.clone()
    assert len(calls) == 1
    hook.remove()
    vit.zero_grad()
    vit.blocks[0].norm1.weight.data *= 2
    vit.blocks[0].norm1.bias.data *= 2
    vit(images).sum().backward()
    torch.testing.assert_close(vit.blocks[0].adapter1.down.grad, doubled)


def test_batch_norms_stay_frozen_when_they_are_replaced(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit("vit_tiny_r_s16_p8_224", img_size=32)
    vit.patch_embed.backbone.norm = nn.BatchNorm2d(64, affine=False)
    adapt(vit, adapter_dim=4)
    nn.SyncBatchNorm.convert_sync_batchnorm(vit)
    vit.head = nn.Sequential(nn.BatchNorm1d(192).requires_grad_(False), nn.BatchNorm1d(192, affine=False))
    for model in (vit, copy.deepcopy(vit), pickle.loads(pickle.dumps(vit))):
        model.train()
        assert isinstance(model.patch_embed.backbone.norm, nn.SyncBatchNorm)
        assert not model.patch_embed.backbone.norm.training
        # What somebody puts in later follows, with or without weights that are trained.
        assert [norm.training for norm in model.head] == [True, True]
    vit.head = nn.Identity()
    eject(vit)
    assert vit.train().patch_embed.backbone.norm.training


@pytest.mark.parametrize("drop", [1.0, -0.5])
def test_a_drop_that_is_no_probability_is_refused_when_gates_are_drawn(
    vit: nn.Module, images: Tensor, drop: float
) -> None:
    vit.train()
    vit.adapters()[1].drop = drop
    with pytest.raises(ValueError, match=rf"drop of an adapter must be in \[0, 1\), got {drop}"):
        vit(images)
