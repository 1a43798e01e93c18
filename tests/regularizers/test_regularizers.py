"""The orthogonality penalty by hand, and the prompt penalty through unchanged pml losses."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from pytorch_metric_learning import losses

import puma_plugin
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.regularizers import OrthogonalityRegularizer, PromptPenalty
from puma_plugin.trainers import BatchShare


def by_hand(rows: list[list[float]]) -> float:
    total = 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            total += (sum(x * y for x, y in zip(a, b, strict=True)) - (i == j)) ** 2
    return total / len(rows) ** 2


@pytest.mark.parametrize("shape", [(3, 8), (8, 8), (9, 4), (40, 3), (1, 5)])
def test_equals_the_formula_for_few_and_many_rows(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, dtype=torch.float64)
    assert OrthogonalityRegularizer()(rows).item() == pytest.approx(by_hand(rows.tolist()), rel=1e-10)


def test_is_zero_for_orthonormal_rows_and_has_right_gradients() -> None:
    orthonormal = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0][:4]
    assert OrthogonalityRegularizer()(orthonormal).item() == pytest.approx(0, abs=1e-28)
    for shape in ((3, 5), (5, 3)):
        rows = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(OrthogonalityRegularizer(), (rows,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32(dtype: torch.dtype) -> None:
    rows = torch.randn(20, 64).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        low = OrthogonalityRegularizer()(rows)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, OrthogonalityRegularizer()(rows.float()))


def test_as_weight_and_embedding_regularizer_of_a_pml_loss() -> None:
    loss = losses.NormalizedSoftmaxLoss(
        5,
        8,
        weight_regularizer=OrthogonalityRegularizer(),
        embedding_regularizer=OrthogonalityRegularizer(),
        embedding_reg_weight=2,
    )
    plain = losses.NormalizedSoftmaxLoss(5, 8)
    plain.W.data.copy_(loss.W)
    embeddings, labels = torch.randn(6, 8), torch.arange(6) % 5
    expected = plain(embeddings, labels) + by_hand(plain.W.t().tolist()) + 2 * by_hand(embeddings.tolist())
    torch.testing.assert_close(loss(embeddings, labels), expected.detach().float(), check_dtype=False)


def test_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="flatten prompts"):
        OrthogonalityRegularizer()(torch.randn(3, 4, 5))
    with pytest.raises(ValueError, match="n >= 1"):
        OrthogonalityRegularizer()(torch.randn(0, 5))


@pytest.fixture
def trunk() -> torch.nn.Module:
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )
    return puma_plugin.adapt(vit, adapter_dim=4, pool_size=3, prompt_length=2)


@pytest.mark.parametrize("through_embedder", [False, True])
def test_prompt_penalty_reaches_the_pool_through_pml_losses(trunk: torch.nn.Module, through_embedder: bool) -> None:
    with torch.no_grad():
        trunk.prompt_pool.keys.add_(torch.randn_like(trunk.prompt_pool.keys))
    model = UnifiedEmbedder(trunk, EmbeddingHead(16, 8)) if through_embedder else trunk
    embeddings, labels = torch.randn(6, 8), torch.arange(6) % 3
    for make, place in (
        (losses.TripletMarginLoss, "embedding"),
        (lambda **kw: CurricularFaceLoss(3, 8, **kw), "embedding"),
        (lambda **kw: CurricularFaceLoss(3, 8, **kw), "weight"),
        (lambda **kw: losses.ProxyAnchorLoss(3, 8, **kw), "weight"),
    ):
        loss = make(**{f"{place}_regularizer": PromptPenalty(model), f"{place}_reg_weight": 1e6})
        plain = make()
        plain.load_state_dict(loss.state_dict())
        trunk.zero_grad()
        value = loss(embeddings, labels)
        value.backward()
        torch.testing.assert_close(value, plain(embeddings, labels) + 1e6 * trunk.prompt_penalty())
        assert trunk.prompt_pool.keys.grad.abs().max() > 0


@pytest.mark.parametrize(
    "wrap",
    [lambda vit: torch.compile(vit, backend="eager"), torch.nn.DataParallel, torch.nn.Sequential],
    ids=["torch.compile", "DataParallel", "Sequential"],
)
def test_prompt_penalty_finds_the_adapted_model_in_wrappers_of_trunk_and_embedder(
    trunk: torch.nn.Module, wrap: Callable[[torch.nn.Module], torch.nn.Module]
) -> None:
    with torch.no_grad():
        trunk.prompt_pool.keys.add_(torch.randn_like(trunk.prompt_pool.keys))
    embedder = UnifiedEmbedder(wrap(trunk), EmbeddingHead(16, 8))
    for model in (wrap(trunk), embedder, wrap(embedder)):
        assert PromptPenalty(model)(torch.randn(2, 8)) == trunk.prompt_penalty() > 0


def test_prompt_penalty_does_not_own_the_model(trunk: torch.nn.Module) -> None:
    loss = CurricularFaceLoss(3, 8, embedding_regularizer=PromptPenalty(trunk))
    assert set(loss.state_dict()) == {"W", "t"}
    assert [name for name, _ in loss.named_parameters()] == ["W"]
    loss.eval()
    assert trunk.training
    # A copy of the loss regularises the same model.
    copied = copy.deepcopy(loss)
    copied(torch.randn(2, 8), torch.tensor([0, 1])).backward()
    assert trunk.prompt_pool.keys.grad is not None


def test_prompt_penalty_follows_a_model_that_is_copied_along(trunk: torch.nn.Module) -> None:
    loss = CurricularFaceLoss(3, 8, embedding_regularizer=PromptPenalty(trunk))
    copied_trunk, copied = copy.deepcopy(torch.nn.ModuleList([trunk, loss]))
    copied(torch.randn(2, 8), torch.tensor([0, 1])).backward()
    assert copied_trunk.prompt_pool.keys.grad is not None
    assert trunk.prompt_pool.keys.grad is None


def test_prompt_penalty_needs_an_adapted_model() -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )
    with pytest.raises(ValueError, match="not adapted"):
        PromptPenalty(vit)
    with pytest.raises(ValueError, match="prompt_penalty_weight=0"):
        PromptPenalty(UnifiedEmbedder(vit, EmbeddingHead(16, 8)))
    PromptPenalty(torch.nn.Sequential(puma_plugin.adapt(vit), EmbeddingHead(16, 8)))


def test_of_two_adapted_models_neither_is_the_one() -> None:
    vits = [timm.create_model("vit_tiny_patch16_224", img_size=16, depth=1, num_classes=0) for _ in range(2)]
    both = torch.nn.ModuleList(puma_plugin.adapt(vit) for vit in vits)
    for make in (PromptPenalty, BatchShare, lambda trunk: UnifiedEmbedder(trunk, EmbeddingHead(192, 8))):
        with pytest.raises(ValueError, match="needs one adapted model, but ModuleList holds 2: take each by itself"):
            make(both)
