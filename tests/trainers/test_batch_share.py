"""A trunk on a share of the batch, in pieces: features, gradients and gates are those of one pass over the whole."""

import copy
import pickle
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
from pytorch_metric_learning import losses
from small_run import Run
from torch import Tensor, nn

import puma_plugin
from puma_plugin.models import AdaptedViT
from puma_plugin.trainers import BatchShare, UnifiedTrainer, batch_share


def vit(drop: float = 0.5) -> AdaptedViT:
    torch.manual_seed(1)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    adapted = puma_plugin.adapt(model, adapter_dim=4, pool_size=3, prompt_length=2, drop=drop, scale=1.0)
    with torch.no_grad():
        for adapter in adapted.adapters():
            adapter.up.normal_(0, 0.5)
    return adapted.train()


IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(12) % 3


def gradients(model: nn.Module, trunk: AdaptedViT) -> tuple[Tensor, dict[str, Tensor]]:
    """Features and gradients of a loss that compares the images of the batch with each other."""
    torch.manual_seed(3)
    trunk.zero_grad()
    features = model(IMAGES)
    losses.MultiSimilarityLoss()(features, LABELS).backward()
    return features.detach(), {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("max_batch", [None, 12, 5, 1])
def test_pieces_give_features_and_gradients_of_the_whole_batch(
    max_batch: int | None, compiled: bool, graphs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = torch.compile(batch_share._call, dynamic=False, backend=graphs.backend)
    monkeypatch.setattr(batch_share, "_compiled_call", lambda: call)
    trunk = vit()
    features, expected = gradients(trunk, trunk)
    found, ours = gradients(BatchShare(trunk, max_batch, compiled=compiled), trunk)
    assert bool(graphs.operators) == compiled
    torch.testing.assert_close(found, features)
    assert any("adapter1.down" in name for name in expected)
    assert ours.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "max_batch", "sizes"),
    [(12, 12, [12]), (12, 11, [6, 6]), (11, 5, [3, 4, 4]), (8, 3, [2, 3, 3]), (2, 1, [1, 1])],
)
def test_pieces_are_few_and_alike(images: int, max_batch: int, sizes: list[int]) -> None:
    seen: list[int] = []
    watched = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    watched.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    features = BatchShare(watched, max_batch)(IMAGES[:images])
    assert seen == sizes
    torch.testing.assert_close(features, watched(IMAGES[:images]))


def test_evaluation_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_share, "_compiled_call", Mock(side_effect=AssertionError))
    share = BatchShare(vit(), compiled=True)
    assert share.eval()(IMAGES).shape == (12, 16)
    with pytest.raises(AssertionError):
        share.train()(IMAGES)


def test_a_compiled_share_can_be_copied_and_pickled() -> None:
    share = BatchShare(vit(), compiled=True)
    for twin in (copy.deepcopy(share), pickle.loads(pickle.dumps(share))):
        assert twin.compiled
        assert twin.state_dict().keys() == share.state_dict().keys() == BatchShare(vit()).state_dict().keys()


def test_sum_over_pieces_is_another_gradient() -> None:
    """Why gradients are not simply accumulated: the usual way is wrong for losses that compare images."""
    trunk = vit(drop=0.0)
    _, expected = gradients(trunk, trunk)
    trunk.zero_grad()
    for rows in (slice(0, 6), slice(6, 12)):
        (losses.MultiSimilarityLoss()(trunk(IMAGES[rows]), LABELS[rows]) / 2).backward()
    name = "blocks.0.adapter1.down"
    assert (dict(trunk.named_parameters())[name].grad - expected[name]).abs().max() > 0.1 * expected[name].abs().max()


@pytest.mark.parametrize("max_batch", [None, 5])
def test_gates_follow_from_the_models_own_generator(max_batch: int | None) -> None:
    trunk = vit()

    def run(model: nn.Module, default: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features, a gradient, and where the generator stands afterwards."""
        trunk.gate_generator = torch.Generator().manual_seed(7)
        torch.manual_seed(default)
        trunk.zero_grad()
        features = model(IMAGES)
        features.square().sum().backward()
        gradient = trunk.adapters()[0].down.grad
        assert gradient is not None
        return features.detach(), gradient.clone(), trunk.gate_generator.get_state()

    for found, expected in zip(run(BatchShare(trunk, max_batch), 1), run(trunk, 2), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_together_are_the_whole_batch(world_size: int) -> None:
    trunk = vit()
    torch.manual_seed(3)
    expected = trunk(IMAGES)
    after = torch.get_rng_state()
    rows = 12 // world_size
    for rank in range(world_size):
        torch.manual_seed(3)
        mine = slice(rank * rows, (rank + 1) * rows)
        found = BatchShare(trunk, 3, rank, world_size)(IMAGES[mine])
        torch.testing.assert_close(found, expected[mine])
        # Every process has drawn for the whole batch, so that their generators stay alike.
        assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("max_batch", [None, 5])
def test_adapters_that_are_never_skipped_have_no_gates(max_batch: int | None) -> None:
    trunk = vit(drop=0.0)
    torch.testing.assert_close(BatchShare(trunk, max_batch)(IMAGES), trunk(IMAGES))


def test_memory_is_that_of_one_piece() -> None:
    """What the forward pass keeps for the backward pass does not grow with the batch."""

    def kept(model: nn.Module, images: Tensor) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size() if tensor.grad_fn is not None else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(images)
        return total

    trunk = vit()
    assert kept(BatchShare(trunk, 2), IMAGES) < 0.1 * kept(trunk, IMAGES)


def test_evaluation_and_other_models_pass_through() -> None:
    trunk = vit().eval()
    torch.testing.assert_close(BatchShare(trunk, 2).eval()(IMAGES), trunk(IMAGES))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    torch.testing.assert_close(BatchShare(plain, 5)(IMAGES), plain(IMAGES))
    # Dropout repeats in the second pass.
    noisy = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.Dropout(0.5), nn.Tanh())
    noisy[1].weight.grad = None
    features = BatchShare(noisy, 5)(IMAGES)
    features.sum().backward()
    slope = torch.where(features == 0, 0.0, 2.0 * (1 - features.detach() ** 2))
    torch.testing.assert_close(noisy[1].bias.grad, slope.sum(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm, partial(nn.BatchNorm1d, track_running_stats=False)])
def test_pieces_are_refused_where_statistics_are_those_of_the_batch(norm: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), norm(4))
    before = copy.deepcopy(net.state_dict())
    generator = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"max_batch=5 would take 12 images .* pieces, but 2 \((Sync)?BatchNorm"):
        BatchShare(net, 5)(IMAGES)
    assert torch.equal(torch.get_rng_state(), generator)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_batch_normalisation_of_a_whole_share_or_with_fixed_statistics_is_right() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.BatchNorm1d(4))
    whole, twin = BatchShare(net, 12), copy.deepcopy(net)
    torch.testing.assert_close(whole(IMAGES), twin(IMAGES))
    assert net[2].num_batches_tracked == 1
    net[2].eval()
    twin.eval()
    torch.testing.assert_close(BatchShare(net, 5)(IMAGES), twin(IMAGES))


def test_pieces_with_batch_normalisation_that_the_trainer_freezes_are_trained() -> None:
    def trainer(freeze: bool) -> UnifiedTrainer:
        run = Run()
        norm = nn.Sequential(run.model, nn.BatchNorm1d(8, affine=False))
        return UnifiedTrainer(
            {"trunk": BatchShare(norm, 4)}, run.optimizers, 6, {"metric_loss": run.loss}, run.dataset,
            freeze_trunk_batchnorm=freeze, dataloader_num_workers=0, progress=False,
        )  # fmt: skip

    frozen, free = trainer(True), trainer(False)
    frozen.train()
    assert frozen.global_step == 5
    with pytest.raises(ValueError, match=r"max_batch=4 would .*: use max_batch=None, or .* freeze_trunk_batch"):
        free.train()
    assert free.global_step == 0


def test_blocks_that_are_computed_twice_are_refused() -> None:
    """The second time, in the backward, other gates would be drawn."""
    trunk = vit()
    trunk.set_grad_checkpointing()
    with pytest.raises(ValueError, match="computed once more in the backward pass"):
        BatchShare(trunk, 5)(IMAGES)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="max_batch must be at least 1"):
        BatchShare(nn.Identity(), 0)
    with pytest.raises(ValueError, match=r"rank must lie in 0..world_size - 1, got rank 2 of 2"):
        BatchShare(nn.Identity(), None, 2, 2)
    with pytest.raises(ValueError, match="gates must be one per adapter, 4, got 1"), vit().given_gates([None]):
        pass
