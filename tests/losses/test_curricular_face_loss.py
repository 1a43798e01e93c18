"""CurricularFaceLoss against the formula written as a loop, and its contract as a pml loss."""

import copy
import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers, regularizers
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance

from puma_plugin.losses import CurricularFaceLoss

CLASSES, WIDTH = 7, 5


def by_hand(
    embeddings: torch.Tensor, labels: torch.Tensor, proxies: torch.Tensor, t: list[float], margin: float, scale: float
) -> list[float]:
    """One loss per item, in Python floats. ``t`` holds one number per class."""
    result = []
    for row, label in zip(embeddings.tolist(), labels.tolist(), strict=True):
        cosines = []
        for proxy in proxies.t().tolist():
            dot = sum(a * b for a, b in zip(row, proxy, strict=True))
            cosines.append(dot / math.hypot(*row) / math.hypot(*proxy))
        theta = math.acos(cosines[label])
        within = theta <= math.pi - margin
        phi = math.cos(theta + margin) if within else cosines[label] - margin * math.sin(math.pi - margin)
        logits = [scale * (c * (c + t[label]) if c > phi else c) for c in cosines]
        logits[label] = scale * phi
        top = max(logits)
        result.append(top + math.log(sum(math.exp(x - top) for x in logits)) - logits[label])
    return result


def batch(size: int = 12, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, WIDTH, dtype=dtype), torch.arange(size) % CLASSES


@pytest.mark.parametrize("ema", ["per_class", "global"])
@pytest.mark.parametrize(("margin", "scale"), [(0.3, 32.0), (0.5, 64.0), (0.0, 1.0), (1.2, 8.0)])
def test_equals_the_formula(ema: Any, margin: float, scale: float) -> None:
    reducer = reducers.DoNothingReducer()
    loss = CurricularFaceLoss(CLASSES, WIDTH, margin, scale, ema, momentum=0.9, reducer=reducer).double()
    for _ in range(4):
        embeddings, labels = batch()
        # Some items far from their proxy, so that the branch past pi - m is taken as well.
        embeddings[:3] = -loss.W.detach().t()[labels[:3]] + 0.01 * torch.randn(3, WIDTH)
        t = loss.t.expand(CLASSES).tolist()
        expected = by_hand(embeddings, labels, loss.W.detach(), t, margin, scale)
        assert loss(embeddings, labels)["loss"]["losses"].tolist() == pytest.approx(expected, rel=1e-9)
    assert loss.t.abs().max() > 0


def test_the_average_is_updated_after_the_loss_per_class_and_globally() -> None:
    labels = torch.tensor([0, 0, 2])
    embeddings = torch.randn(3, WIDTH)
    for ema in ("per_class", "global"):
        loss = CurricularFaceLoss(CLASSES, WIDTH, ema=ema, momentum=0.99)  # type: ignore[arg-type]
        first = loss(embeddings, labels)
        positive = (loss.get_logits(embeddings) / loss.scale).gather(1, labels[:, None]).squeeze(1).detach()
        if ema == "per_class":
            expected = torch.zeros(CLASSES)
            expected[0], expected[2] = 0.01 * positive[:2].mean(), 0.01 * positive[2]
        else:
            expected = 0.01 * positive.mean()
        torch.testing.assert_close(loss.t, expected)
        # t was 0 when the first loss was taken: a fresh loss in evaluation mode agrees, and leaves t alone.
        fresh = CurricularFaceLoss(CLASSES, WIDTH, ema=ema).eval()  # type: ignore[arg-type]
        fresh.W.data.copy_(loss.W)
        torch.testing.assert_close(fresh(embeddings, labels), first)
        assert fresh.t.abs().max() == 0


def test_the_average_of_a_class_that_is_not_in_the_batch_stays() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH, momentum=0.5)
    loss.t = torch.linspace(0.1, 0.7, CLASSES)
    embeddings, labels = torch.randn(3, WIDTH), torch.tensor([0, 0, 2])
    positive = (loss.get_logits(embeddings) / loss.scale).gather(1, labels[:, None]).squeeze(1).detach()
    loss(embeddings, labels)
    expected = torch.linspace(0.1, 0.7, CLASSES)
    expected[0], expected[2] = 0.5 * 0.1 + 0.5 * positive[:2].mean(), 0.5 * 0.3 + 0.5 * positive[2]
    torch.testing.assert_close(loss.t, expected)


@pytest.mark.parametrize("ema", ["per_class", "global"])
def test_an_embedding_that_overflowed_does_not_stay_in_the_average(ema: Any) -> None:
    """With loss scaling its step is left out; the average must not keep it either."""
    loss = CurricularFaceLoss(CLASSES, WIDTH, ema=ema)
    embeddings, labels = torch.randn(3, WIDTH), torch.tensor([0, 0, 2])
    loss(embeddings, labels)
    before = loss.t.clone()
    embeddings[0] = math.inf
    assert not loss(embeddings, labels).isfinite()
    assert loss.t.isfinite().all()
    if ema == "per_class":
        assert loss.t[0] == before[0]
        assert loss.t[2] != before[2]
    else:
        assert loss.t == before


def test_gradients() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH).double().eval()
    loss.t.fill_(0.3)
    embeddings, labels = batch(6)
    embeddings.requires_grad_()

    def value(rows: torch.Tensor, proxies: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, {"W": proxies}, (rows, labels))

    assert torch.autograd.gradcheck(value, (embeddings, loss.W.detach().clone().requires_grad_()))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_on_and_opposite_the_proxy(sign: float) -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH)
    labels = torch.arange(CLASSES)
    embeddings = (sign * loss.W.detach().t()).clone().requires_grad_()
    loss(embeddings, labels).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert loss.W.grad is not None
    assert loss.W.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_leaves_the_proxies_in_float32(dtype: torch.dtype) -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH)
    embeddings, labels = batch(dtype=torch.float32)
    low = embeddings.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        value = loss(low, labels)
    value.backward()
    assert value.dtype == loss.W.dtype == loss.t.dtype == torch.float32
    assert low.grad is not None
    assert low.grad.dtype == dtype
    plain = copy.deepcopy(loss)
    plain.t.zero_()
    torch.testing.assert_close(value, plain(low.detach().float(), labels))


def test_margin_is_in_radians_as_in_pml_arcface_in_degrees() -> None:
    # Without hard negatives (all below phi) CurricularFace is ArcFace; a well separated batch has none.
    ours = CurricularFaceLoss(CLASSES, CLASSES, margin=0.3, scale=16)
    theirs = losses.ArcFaceLoss(CLASSES, CLASSES, margin=math.degrees(0.3), scale=16)
    with torch.no_grad():
        ours.W.copy_(torch.eye(CLASSES))
        theirs.W.copy_(torch.eye(CLASSES))
    embeddings = torch.eye(CLASSES) + 0.05 * torch.randn(CLASSES, CLASSES)
    labels = torch.arange(CLASSES)
    torch.testing.assert_close(ours(embeddings, labels), theirs(embeddings, labels))


def test_logits_are_scaled_cosines() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH, scale=10)
    embeddings, _ = batch(4, torch.float32)
    expected = 10 * torch.nn.functional.cosine_similarity(embeddings[:, None], loss.W.t()[None], dim=2)
    torch.testing.assert_close(loss.get_logits(embeddings), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss.get_logits(embeddings), expected)


def test_two_classes_in_one_dimension_are_the_fewest() -> None:
    loss = CurricularFaceLoss(2, 1)
    assert loss(torch.ones(2, 1), torch.tensor([0, 1])).isfinite()


def test_a_batch_without_items() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH, reducer=reducers.SumReducer())
    loss.t.fill_(0.2)
    value = loss(torch.randn(0, WIDTH, requires_grad=True), torch.empty(0, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert (loss.t == 0.2).all()


def test_miner_weights_multiply_the_losses() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH, reducer=reducers.DoNothingReducer()).eval()
    embeddings, labels = batch(8, torch.float32)
    labels = labels % 2
    plain = loss(embeddings, labels)["loss"]["losses"]
    indices = miners.BatchHardMiner()(embeddings, labels)
    weighted = loss(embeddings, labels, indices)["loss"]["losses"]
    counts = torch.bincount(torch.cat(indices), minlength=8).float()
    torch.testing.assert_close(weighted, plain * counts / counts.max())


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [
        (reducers.MeanReducer(), lambda x: x.mean()),
        (reducers.SumReducer(), lambda x: x.sum()),
        (reducers.AvgNonZeroReducer(), lambda x: x[x > 0].mean()),
        (reducers.ThresholdReducer(low=3.0), lambda x: x[x > 3].mean()),
        (reducers.PerAnchorReducer(), lambda x: x.mean()),
    ],
)
def test_reducers(reducer: torch.nn.Module, expected: Any) -> None:
    embeddings, labels = batch(9, torch.float32)
    loss = CurricularFaceLoss(CLASSES, WIDTH, reducer=reducer).eval()
    single = copy.deepcopy(loss)
    single.reducer = reducers.DoNothingReducer()
    torch.testing.assert_close(loss(embeddings, labels), expected(single(embeddings, labels)["loss"]["losses"]))


def test_class_weighted_reducer() -> None:
    weights = torch.linspace(0.5, 2, CLASSES)
    embeddings, labels = batch(9, torch.float32)
    loss = CurricularFaceLoss(CLASSES, WIDTH, reducer=reducers.ClassWeightedReducer(weights)).eval()
    single = copy.deepcopy(loss)
    single.reducer = reducers.DoNothingReducer()
    expected = (single(embeddings, labels)["loss"]["losses"] * weights[labels]).mean()
    torch.testing.assert_close(loss(embeddings, labels), expected)


@pytest.mark.parametrize("regularizer", [regularizers.RegularFaceRegularizer(), regularizers.LpRegularizer()])
def test_weight_and_embedding_regularizers(regularizer: torch.nn.Module) -> None:
    embeddings, labels = batch(9, torch.float32)
    plain = CurricularFaceLoss(CLASSES, WIDTH).eval()
    loss = CurricularFaceLoss(
        CLASSES,
        WIDTH,
        weight_regularizer=copy.deepcopy(regularizer),
        weight_reg_weight=0.5,
        embedding_regularizer=copy.deepcopy(regularizer),
        embedding_reg_weight=0.25,
    ).eval()
    loss.W.data.copy_(plain.W)
    expected = plain(embeddings, labels) + 0.5 * regularizer(plain.W.t()) + 0.25 * regularizer(embeddings)
    torch.testing.assert_close(loss(embeddings, labels), expected)
    assert loss.sub_loss_names() == ["loss", "weight_reg_loss", "embedding_reg_loss"]


def test_statistics_are_recorded_on_request() -> None:
    loss = CurricularFaceLoss(CLASSES, CLASSES, collect_stats=True)
    loss.W.data.copy_(torch.eye(CLASSES))
    loss(torch.eye(CLASSES), torch.arange(CLASSES))
    assert loss.avg_angle == pytest.approx(0, abs=0.1)
    assert loss.hard_fraction == 0
    loss(torch.eye(CLASSES).roll(1, 0), torch.arange(CLASSES))
    assert loss.avg_angle == pytest.approx(90)
    # phi = cos(90 degrees + 0.3) < 0, and every negative is 0 or 1.
    assert loss.hard_fraction == 1


def test_hard_fraction_without_a_margin() -> None:
    """Then the own proxy is not above itself, and is no negative all the same."""
    loss = CurricularFaceLoss(CLASSES, WIDTH, margin=0.0, collect_stats=True)
    embeddings, labels = batch()
    loss(embeddings, labels)
    cosine = loss.get_logits(embeddings) / loss.scale
    hard = cosine > cosine.gather(1, labels[:, None])
    assert loss.hard_fraction == pytest.approx(hard.sum().item() / (len(labels) * (CLASSES - 1)), abs=0.02)


def test_state_holds_proxies_and_average() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH)
    loss(*batch(9, torch.float32))
    other = CurricularFaceLoss(CLASSES, WIDTH)
    other.load_state_dict(loss.state_dict())
    assert set(loss.state_dict()) == {"W", "t"}
    torch.testing.assert_close(other.t, loss.t)


def test_initial_proxies_are_kaiming_fan_out_and_can_be_chosen() -> None:
    loss = CurricularFaceLoss(4000, 64)
    assert loss.W.shape == (64, 4000)
    assert loss.W.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.01)
    ones = CurricularFaceLoss(3, 4, weight_init_func=torch.nn.init.ones_)
    assert (ones.W == 1).all()


def test_compiles_without_graph_break() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH)
    embeddings, labels = batch(9, torch.float32)
    reference = copy.deepcopy(loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    # The backward pass needs the average of before its update; more than one step shows that it has it.
    for _ in range(3):
        rows = embeddings.requires_grad_()
        twin = embeddings.detach().clone().requires_grad_()
        value, expected = compiled(rows, labels), reference(twin, labels)
        (gradient,) = torch.autograd.grad(value, rows)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, twin)[0])
        torch.testing.assert_close(loss.t, reference.t)


class HalfCosine(CosineSimilarity):
    """Another distance, which the loss would not compute."""

    def compute_mat(self, query_emb: torch.Tensor, ref_emb: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().compute_mat(query_emb, ref_emb)


class OfPairs(CosineSimilarity):
    def pairwise_distance(self, query_emb: torch.Tensor, ref_emb: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().pairwise_distance(query_emb, ref_emb)


class OfAll(CosineSimilarity):
    def forward(self, query_emb: torch.Tensor, ref_emb: Any = None) -> torch.Tensor:
        return 0.5 * super().forward(query_emb, ref_emb)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"margin": 28.6}, "radians"),
        ({"scale": 0}, "scale"),
        ({"ema": "none"}, "ema"),
        ({"momentum": 1.0}, "momentum"),
        ({"distance": LpDistance()}, "CosineSimilarity"),
        ({"distance": HalfCosine()}, "CosineSimilarity"),
        ({"distance": OfPairs()}, "CosineSimilarity"),
        ({"distance": OfAll()}, "CosineSimilarity"),
        ({"distance": CosineSimilarity(power=2)}, "got one with power=2"),
        ({"distance": CosineSimilarity(p=1)}, "got one with p=1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurricularFaceLoss(**{"num_classes": CLASSES, "embedding_size": WIDTH, **arguments})


def test_wrong_input() -> None:
    loss = CurricularFaceLoss(CLASSES, WIDTH)
    embeddings, labels = batch(4, torch.float32)
    with pytest.raises(ValueError, match=r"0\.\.6 .*got 0\.\.7"):
        loss(embeddings, torch.tensor([0, 1, 2, 7]))
    with pytest.raises(ValueError, match="-1"):
        loss(embeddings, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(ValueError, match=r"labels\[:, 0\]"):
        loss(embeddings, torch.stack([labels, labels], dim=1))
    with pytest.raises(TypeError, match="int64"):
        loss(embeddings, labels.float())
    with pytest.raises(ValueError, match="needs labels"):
        loss(embeddings)
    with pytest.raises(ValueError, match="CrossBatchMemory"):
        loss(embeddings, labels, ref_emb=embeddings)
    with pytest.raises(ValueError, match="CrossBatchMemory"):
        loss(embeddings, labels, ref_labels=labels)
    with pytest.raises(ValueError, match=r"\(batch size, 5\)"):
        loss(embeddings[:, :3], labels)
    with pytest.raises(TypeError, match="float32"):
        loss.half()(embeddings.half(), labels)
