from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from puma_plugin import EmbeddingHead, UnifiedEmbedder, adapt, load_adapter, save_adapter
from puma_plugin.trainers import BatchShare


@pytest.fixture
def embedder(make_vit: Callable[..., nn.Module]) -> UnifiedEmbedder:
    return UnifiedEmbedder(adapt(make_vit(), adapter_dim=4, pool_size=3, prompt_length=2), EmbeddingHead(192, 8))


def test_forward_is_head_of_trunk(embedder: UnifiedEmbedder) -> None:
    images = torch.randn(2, 3, 32, 32)
    embeddings = embedder.eval()(images)
    assert torch.equal(embeddings, embedder.head(embedder.trunk(images)))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_methods_delegate(embedder: UnifiedEmbedder) -> None:
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(embedder.prompt_penalty(), embedder.trunk.prompt_penalty())
    assert torch.equal(embedder.prompt_weights(images), embedder.trunk.prompt_weights(images))
    assert len(embedder.trainable_parameters()) == len(embedder.trunk.trainable_parameters()) + 2
    embedder.train()
    assert embedder.head.training
    assert not embedder.trunk.patch_embed.training


def test_param_groups_have_the_papers_factors(embedder: UnifiedEmbedder) -> None:
    rates = {group["name"]: group["lr"] for group in embedder.param_groups(lr=1e-4)}
    assert rates == {name: pytest.approx(1e-3) for name in ("adapters", "prompts", "head")}
    rates = {group["name"]: group["lr"] for group in embedder.param_groups(lr=1.0, head_factor=2, adapter_factor=3)}
    assert rates == {"adapters": 3, "prompts": 10, "head": 2}
    with pytest.raises(ValueError, match="factor of head"):
        embedder.param_groups(head_factor=-1)


@pytest.mark.parametrize(
    "wrap",
    [lambda trunk: torch.compile(trunk, backend="eager"), nn.DataParallel],
    ids=["torch.compile", "DataParallel"],
)
def test_an_adapted_trunk_is_found_in_its_wrapper(
    embedder: UnifiedEmbedder, wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    images = torch.randn(2, 3, 32, 32)
    groups, vit = embedder.param_groups(lr=1e-4), embedder.trunk
    with torch.no_grad():
        vit.prompt_pool.keys.mul_(2)
    wrapped = UnifiedEmbedder(wrap(vit), embedder.head)
    assert wrapped.prompt_penalty() == vit.prompt_penalty() > 0
    assert torch.equal(wrapped.prompt_weights(images), vit.prompt_weights(images))
    for group, expected in zip(wrapped.param_groups(lr=1e-4), groups, strict=True):
        assert (group["name"], group["lr"]) == (expected["name"], expected["lr"])
        assert list(map(id, group["params"])) == list(map(id, expected["params"]))
    save_adapter(wrapped, tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors").keys() == {
        name.removeprefix("trunk.") for name, p in embedder.named_parameters() if p.requires_grad
    }
    load_adapter(wrapped, tmp_path / "a.safetensors")


def test_what_is_trained_in_a_wrapper_has_its_group(embedder: UnifiedEmbedder) -> None:
    before = nn.Conv2d(3, 3, 1)
    wrapped = UnifiedEmbedder(nn.Sequential(before, embedder.trunk), embedder.head)
    groups = {group["name"]: group for group in wrapped.param_groups(lr=1.0, other_factor=4)}
    assert groups.keys() == {"adapters", "prompts", "trunk", "head"}
    assert groups["trunk"]["params"] == [before.weight, before.bias]
    assert groups["trunk"]["lr"] == 4
    torch.optim.AdamW(wrapped.param_groups())


class Darker(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images / 4 - 1


def test_what_stands_before_the_adapted_model_counts_for_prompts(embedder: UnifiedEmbedder) -> None:
    wrapped = UnifiedEmbedder(nn.Sequential(Darker(), embedder.trunk), embedder.head).train()
    images = torch.randn(3, 3, 32, 32)
    found = wrapped.prompt_weights(images)
    torch.testing.assert_close(found, embedder.prompt_weights(Darker()(images)))
    assert not found.requires_grad
    assert wrapped.training
    assert not torch.allclose(found, embedder.prompt_weights(images))


def test_prompt_weights_through_compiled_and_other_trunks(embedder: UnifiedEmbedder) -> None:
    images = torch.randn(3, 3, 32, 32)
    expected = embedder.prompt_weights(images)

    class Twice(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images) + self.inner(images.flip(-1))

    inner = torch.compile(embedder.trunk, backend="eager")
    inner(images)
    for trunk in (inner, BatchShare(inner), nn.Sequential(inner), nn.Sequential(nn.Identity(), inner)):
        torch.testing.assert_close(UnifiedEmbedder(trunk, embedder.head).prompt_weights(images), expected)
    with pytest.raises(ValueError, match="the trunk, a Twice, calls the adapted model in it 2 times"):
        UnifiedEmbedder(Twice(embedder.trunk), embedder.head).prompt_weights(images)


def test_a_file_tells_nothing_of_what_else_a_trunk_does(embedder: UnifiedEmbedder, tmp_path: Path) -> None:
    """Nothing of it takes a gradient, so nothing would be missed; the model of the file would be another one."""
    save_adapter(embedder, tmp_path / "plain.safetensors")
    wrapped = UnifiedEmbedder(nn.Sequential(Darker(), embedder.trunk), embedder.head)
    message = r"not of what else the trunk .* does, a Sequential: take UnifiedEmbedder\(trunk\[1\], head\)"
    with pytest.raises(ValueError, match=message):
        save_adapter(wrapped, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        load_adapter(wrapped, tmp_path / "plain.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.safetensors"]
    # What computes the same is no more than the adapted model.
    for trunk in (BatchShare(embedder.trunk), nn.Sequential(embedder.trunk), AveragedModel(embedder.trunk)):
        save_adapter(UnifiedEmbedder(trunk, embedder.head), tmp_path / "a.safetensors")
        load_adapter(UnifiedEmbedder(trunk, embedder.head), tmp_path / "plain.safetensors")
    with pytest.raises(TypeError, match=r"got Sequential; did you mean its \[0\]\?"):
        save_adapter(nn.Sequential(embedder), tmp_path / "a.safetensors")  # and not its trunk, without the head


def test_a_trunk_that_is_not_adapted_is_a_baseline(make_vit: Callable[..., nn.Module]) -> None:
    embedder = UnifiedEmbedder(make_vit(), EmbeddingHead(192, 8))
    assert embedder.prompt_penalty() == 0
    assert [group["name"] for group in embedder.param_groups()] == ["trunk", "head"]
    with pytest.raises(TypeError, match="adapter_facter"):
        embedder.param_groups(adapter_facter=3.0)
    embedder.trunk.requires_grad_(False)
    assert [group["name"] for group in embedder.param_groups()] == ["head"]
    with pytest.raises(ValueError, match="not adapted"):
        embedder.prompt_weights(torch.randn(1, 3, 32, 32))


def test_what_does_not_fit_is_refused(make_vit: Callable[..., nn.Module]) -> None:
    head = EmbeddingHead(192, 8)
    with pytest.raises(ValueError, match="takes 100 features but the trunk gives 192"):
        UnifiedEmbedder(make_vit(), EmbeddingHead(100, 8))
    with pytest.raises(ValueError, match=r"classifier of 5 classes.*reset_classifier\(0\)"):
        UnifiedEmbedder(make_vit(num_classes=5), head)
    with pytest.raises(ValueError, match=r"classifier of 1000 classes; put torch.nn.Identity\(\) in its place"):
        UnifiedEmbedder(torchvision.models.VisionTransformer(32, 16, 1, 3, 192, 192), head)
    without_head = make_vit(num_classes=5)
    without_head.head = nn.Identity()
    UnifiedEmbedder(without_head, head)
    distilled = make_vit("deit_tiny_distilled_patch16_224", num_classes=5)
    distilled.head = nn.Identity()
    with pytest.raises(ValueError, match="classifier of 5 classes"):
        UnifiedEmbedder(distilled, head)
    with pytest.raises(ValueError, match="does not pool its tokens"):
        UnifiedEmbedder(make_vit(global_pool=""), head)
    with pytest.raises(TypeError, match="head must be an EmbeddingHead, got Linear"):
        UnifiedEmbedder(make_vit(), nn.Linear(192, 8))
    with pytest.raises(TypeError, match="trunk must be a module, got str"):
        UnifiedEmbedder("vit", head)
