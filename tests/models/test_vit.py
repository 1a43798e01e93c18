"""adapt() and eject(): what they refuse, and what they promise beyond a single model."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn
from torch.nn import functional

from puma_plugin import EmbeddingHead, UnifiedEmbedder, adapt, eject

SMALL = {"num_classes": 0, "img_size": 32, "depth": 1}


def test_parameter_counts_are_the_papers() -> None:
    vit = timm.create_model("vit_small_patch16_224", num_classes=0)
    backbone = sum(parameter.numel() for parameter in vit.parameters())
    model = UnifiedEmbedder(adapt(vit), EmbeddingHead(384, 128))
    counts = {group["name"]: sum(p.numel() for p in group["params"]) for group in model.param_groups()}
    assert counts == {"adapters": 2_359_296, "prompts": 76_800, "head": 49_280}
    assert sum(p.numel() for p in model.trainable_parameters()) == 2_485_376
    eight_models = 8 * (backbone + counts["head"])
    assert eight_models / 2_485_376 == pytest.approx(69.9, abs=0.05)
    assert 100 * 2_485_376 / eight_models == pytest.approx(1.43, abs=0.005)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
        ("cait_xxs24_224", {"depth": 1}),
        ("xcit_nano_12_p16_224", {"depth": 1}),
        ("samvit_base_patch16_224", {"depth": 1, "img_size": 64}),
        ("convit_tiny", {"depth": 1}),
        ("resnet18", {}),
    ],
)
def test_other_models_are_refused_with_what_is_supported(name: str, arguments: dict[str, Any]) -> None:
    model = timm.create_model(name, **arguments)
    with pytest.raises(ValueError, match=rf"does not support timm\..*\.{type(model).__name__}\. Supported are .*Beit"):
        adapt(model)


@pytest.mark.parametrize(
    ("name", "arguments", "block"),
    [
        ("vit_small_patch16_18x2_224", {}, "ParallelThingsBlock"),
        ("vit_base_patch16_xp_224", {}, "ParallelScalingBlock"),
        ("vit_tiny_patch16_224", {"block_fn": ResPostBlock}, "ResPostBlock"),
        ("vit_relpos_medium_patch16_rpn_224", {}, "ResPostRelPosBlock"),
        ("eva02_tiny_patch14_224", {"use_post_norm": True, "img_size": 28}, "EvaBlockPostNorm"),
    ],
)
def test_other_blocks_in_a_supported_model_are_refused(name: str, arguments: dict[str, Any], block: str) -> None:
    model = timm.create_model(name, **{**SMALL, **arguments})
    with pytest.raises(ValueError, match=rf"with blocks of {block}\. Supported are"):
        adapt(model, pool_size=0)


@pytest.mark.parametrize(
    "name", ["beit_base_patch16_224", "naflexvit_base_patch16_gap", "vit_relpos_small_patch16_224"]
)
def test_prompts_are_refused_where_they_cannot_enter(name: str) -> None:
    vit = timm.create_model(name, **SMALL)
    with pytest.raises(ValueError, match=r"adapters but no prompts.*pool_size=0"):
        adapt(vit)
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_adapting_twice_is_refused_and_changes_nothing(make_vit: Callable[..., nn.Module]) -> None:
    vit = adapt(make_vit(), adapter_dim=4)
    before = repr(vit)
    with pytest.raises(ValueError, match=r"adapted already; call eject\(\) first"):
        adapt(vit)
    assert repr(vit) == before
    adapt(eject(vit), adapter_dim=8)
    assert vit.adaptation.adapter_dim == 8


def test_wrappers_and_other_objects_are_refused(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    with pytest.raises(TypeError, match="got str"):
        adapt("vit_small_patch16_224")
    with pytest.raises(ValueError, match=r"got DataParallel; did you mean its \.module\?"):
        adapt(nn.DataParallel(vit))
    with pytest.raises(ValueError, match=r"did you mean its \.trunk\?"):
        adapt(UnifiedEmbedder(vit, EmbeddingHead(192, 8)))
    with pytest.raises(ValueError, match=r"got Sequential; did you mean its \[0\]\?"):
        adapt(nn.Sequential(vit, nn.Linear(192, 8)))
    with pytest.raises(ValueError, match=r"does not support torch.nn.modules.linear.Linear\. Supported are"):
        adapt(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="VisionTransformer is not adapted"):
        eject(vit)
    with pytest.raises(ValueError, match=r"did you mean its \.trunk\?"):
        eject(UnifiedEmbedder(adapt(vit), EmbeddingHead(192, 8)))
    with pytest.raises(TypeError, match="got NoneType"):
        eject(None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"adapter_dim": 0}, ValueError, "adapter_dim must be at least 1"),
        ({"adapter_dim": 2.5}, TypeError, "adapter_dim must be an int"),
        ({"drop": 1}, ValueError, "drop must be a finite number in"),
        ({"scale": float("inf")}, ValueError, "scale must be a finite"),
        ({"trainable_scale": None}, TypeError, "trainable_scale must be True or False"),
        ({"pool_size": -1}, ValueError, "pool_size must be at least 0"),
        ({"prompt_length": 0}, ValueError, "prompt_length must be at least 1"),
        ({"init": "random"}, ValueError, "init must be one of 'default', 'paper'"),
        ({"paper_batchnorm": 1}, TypeError, "paper_batchnorm must be True or False"),
        ({"blocks": 3}, TypeError, "blocks must be block indices"),
        ({"blocks": "01"}, TypeError, "blocks must be block indices"),
        ({"blocks": [0, 2]}, ValueError, "blocks must be different indices from 0 to 1"),
        ({"blocks": [0, 0]}, ValueError, "blocks must be different"),
        ({"blocks": [-1]}, ValueError, "every entry of blocks must be at least 0"),
        ({"blocks": [0.0]}, TypeError, "every entry of blocks must be an int"),
        ({"blocks": [], "pool_size": 0}, ValueError, "nothing to train"),
        ({"generator": 42}, TypeError, r"generator must be .* got 42; for a seed"),
    ],
)
def test_bad_arguments_are_refused_before_anything_happens(
    make_vit: Callable[..., nn.Module], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    vit = make_vit()
    with pytest.raises(error, match=message):
        adapt(vit, **arguments)
    assert type(vit) is timm.models.VisionTransformer
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_self_check_refuses_blocks_that_compute_something_else(
    make_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def post_norm(self: Block, x: torch.Tensor, **options: Any) -> torch.Tensor:
        x = x + self.norm1(self.attn(x, **options))
        return x + self.norm2(self.mlp(x))

    vit = make_vit()
    vit.train()
    monkeypatch.setattr(Block, "forward", post_norm)
    names = list(vit.state_dict())
    with pytest.raises(ValueError, match=r"self-check failed: .* is off by"):
        adapt(vit)
    assert type(vit) is timm.models.VisionTransformer
    assert list(vit.state_dict()) == names
    assert {type(block) for block in vit.blocks} == {Block}
    assert all(parameter.requires_grad for parameter in vit.parameters())
    assert all(module.training for module in vit.modules())


@pytest.mark.parametrize("sizes", [{"adapter_dim": 10**14}, {"prompt_length": 10**14}], ids=["adapters", "prompts"])
def test_memory_that_runs_out_leaves_the_model_as_it_was(
    make_vit: Callable[..., nn.Module], sizes: dict[str, int]
) -> None:
    vit = make_vit()
    names = list(vit.state_dict())
    with pytest.raises(RuntimeError, match="memory"):
        adapt(vit, **{"adapter_dim": 4, **sizes})
    assert {type(vit), *map(type, vit.blocks)} == {timm.models.VisionTransformer, Block}
    assert list(vit.state_dict()) == names
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_a_model_whose_output_is_not_finite_is_refused_as_such(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    nn.init.constant_(vit.norm.weight, float("nan"))
    with pytest.raises(ValueError, match=r"gives NaN or infinity for a random image even without adapters"):
        adapt(vit)
    assert type(vit) is timm.models.VisionTransformer


def test_a_weight_shared_by_two_modules_is_thawed(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    vit.blocks[1].mlp.fc1.weight = vit.blocks[0].mlp.fc1.weight
    eject(adapt(vit, adapter_dim=4))
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_blocks_with_a_forward_on_the_instance_are_refused(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    vit.blocks[1].forward = vit.blocks[1].forward
    with pytest.raises(ValueError, match="would bypass its adapters"):
        adapt(vit)


def test_self_check_leaves_the_callers_random_numbers_alone(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    state = torch.get_rng_state()
    adapt(vit, adapter_dim=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


def test_start_follows_the_generator(make_vit: Callable[..., nn.Module]) -> None:
    first, second = (
        adapt(make_vit(), adapter_dim=4, pool_size=2, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    for one, other in zip(first.trainable_parameters(), second.trainable_parameters(), strict=True):
        assert torch.equal(one, other)
    downs = [adapter.down for adapter in first.adapters()]
    assert not any(torch.equal(downs[0], down) for down in downs[1:])


def test_paper_start_has_identical_copies_in_a_block(make_vit: Callable[..., nn.Module]) -> None:
    vit = adapt(make_vit(), adapter_dim=4, pool_size=3, prompt_length=2, init="paper")
    a, b = vit.blocks
    assert torch.equal(a.adapter1.down, a.adapter2.down)
    assert not torch.equal(a.adapter1.down, b.adapter1.down)
    assert (vit.prompt_pool.prompts == vit.prompt_pool.prompts[0]).all()


def test_own_part_takes_device_and_dtype_of_the_model(make_vit: Callable[..., nn.Module]) -> None:
    vit = adapt(make_vit().to(torch.bfloat16), adapter_dim=4, pool_size=3)
    assert {parameter.dtype for parameter in vit.parameters()} == {torch.bfloat16}
    assert vit(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.device("meta"):
        empty = timm.create_model("vit_tiny_patch16_224", **SMALL)
    assert all(parameter.is_meta for parameter in adapt(empty, trainable_scale=True).parameters())
    assert "scale=? (trainable)" in repr(empty)


def test_default_device_and_dtype_do_not_matter(make_vit: Callable[..., nn.Module]) -> None:
    first, second = make_vit(), make_vit()
    second.load_state_dict(first.state_dict())
    adapt(first, adapter_dim=4, pool_size=2, generator=torch.Generator().manual_seed(7))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # stands for torch.set_default_device("cuda")
            adapt(second, adapter_dim=4, pool_size=2, generator=torch.Generator().manual_seed(7))
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_equal_models_share_their_class(make_vit: Callable[..., nn.Module]) -> None:
    first, second = adapt(make_vit(), adapter_dim=4), adapt(make_vit(), adapter_dim=8)
    assert type(first) is type(second)
    assert type(first.blocks[0]) is type(second.blocks[1])
    assert isinstance(first.blocks[0], Block)


def test_other_input_channels(make_vit: Callable[..., nn.Module]) -> None:
    vit = adapt(make_vit(in_chans=1), adapter_dim=4)
    assert vit(torch.randn(2, 1, 32, 32)).shape == (2, 192)


def test_hooks_and_attributes_of_the_user_survive(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    calls = []
    vit.register_forward_hook(lambda *_: calls.append(1))
    vit.note = "mine"
    adapt(vit, adapter_dim=4)
    vit(torch.randn(1, 3, 32, 32))
    eject(vit)
    vit(torch.randn(1, 3, 32, 32))
    assert len(calls) == 2
    assert vit.note == "mine"


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, in_chans=2
        ),
        lambda: timm.models.Eva(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, in_chans=2),
        lambda: timm.models.VisionTransformer(32, 8, embed_dim=24, depth=1, num_heads=2, in_chans=2, pos_embed="none"),
    ],
    ids=["VisionTransformer", "Eva", "no position embedding"],
)
def test_models_made_without_create_model(build: Callable[[], nn.Module]) -> None:
    vit = adapt(build(), adapter_dim=4, pool_size=2, prompt_length=3)
    assert vit(torch.randn(2, 2, 32, 32)).shape == (2, 1000)


def stay(mode: bool = True) -> None:
    """As BLIP-2 and others keep a frozen model in evaluation mode: ``vit.train = disabled_train``."""


@pytest.mark.parametrize("name", ["train", "_pos_embed", "forward_features", "forward_intermediates"])
def test_methods_set_on_the_instance_would_pass_over_adapters_or_prompts(
    make_vit: Callable[..., nn.Module], name: str
) -> None:
    vit = make_vit()
    setattr(vit, name, stay)
    with pytest.raises(ValueError, match=rf"{name} is set on the instance of this VisionTransformer, .*: `del` it"):
        adapt(vit, adapter_dim=4)
    delattr(vit, name)
    adapt(vit, adapter_dim=4)
    if name in ("train", "_pos_embed"):
        with pytest.raises(ValueError, match=f"{name} of an adapted model cannot be replaced on the instance"):
            setattr(vit, name, stay)
    else:  # such as one that calls the model's own and measures the time
        setattr(vit, name, getattr(vit, name))


def test_without_prompts_positions_may_be_replaced(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    vit._pos_embed = vit._pos_embed
    adapt(vit, adapter_dim=4, pool_size=0)
    vit._pos_embed = vit._pos_embed


def test_blocks_whose_train_does_nothing_are_refused(make_vit: Callable[..., nn.Module]) -> None:
    vit = make_vit()
    vit.blocks[1].train = stay
    with pytest.raises(ValueError, match="train is set on the instance of this Block"):
        adapt(vit)


def test_self_check_sees_the_operators_that_run(
    make_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch's attention was replaced, ours, which goes past it, computes something else."""
    original = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, k, v, **options: original(2 * q, k, v))
    with pytest.raises(ValueError, match="self-check failed"):
        adapt(make_vit())


def test_self_check_does_not_mind_autocast_and_large_weights() -> None:
    """Both let operators of ours and torch's differ by more than a wrong block might."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "depth": 24}).eval()
    with torch.no_grad():
        for weight in vit.blocks.parameters():
            weight.mul_(40 if weight.ndim == 2 else 1)
    with torch.autocast("cpu", torch.bfloat16):
        adapt(vit, adapter_dim=4)


def test_the_model_inside_of_others_is_named(make_vit: Callable[..., nn.Module]) -> None:
    inner = nn.Sequential(nn.Identity(), make_vit())
    with pytest.raises(ValueError, match=r"got Sequential; did you mean its \[1\]\?"):
        adapt(inner)
    with pytest.raises(ValueError, match=r"got Sequential; did you mean its \[0\]\.trunk\?"):
        adapt(nn.Sequential(UnifiedEmbedder(make_vit(), EmbeddingHead(192, 8))))
