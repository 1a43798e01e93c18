"""Every loss of pytorch-metric-learning trains PUMA on the embedded data."""

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.samplers import MultiDistributionSampler

CLASSES, WIDTH = 42, 32

PROXY: dict[str, Callable[[], nn.Module]] = {
    "ArcFaceLoss": lambda: losses.ArcFaceLoss(CLASSES, WIDTH),
    "CosFaceLoss": lambda: losses.CosFaceLoss(CLASSES, WIDTH),
    "CurricularFaceLoss": lambda: CurricularFaceLoss(CLASSES, WIDTH),
    "LargeMarginSoftmaxLoss": lambda: losses.LargeMarginSoftmaxLoss(CLASSES, WIDTH),
    "NormalizedSoftmaxLoss": lambda: losses.NormalizedSoftmaxLoss(CLASSES, WIDTH),
    "P2SGradLoss": lambda: losses.P2SGradLoss(WIDTH, CLASSES),
    "ProxyAnchorLoss": lambda: losses.ProxyAnchorLoss(CLASSES, WIDTH),
    "ProxyNCALoss": lambda: losses.ProxyNCALoss(CLASSES, WIDTH),
    "SoftTripleLoss": lambda: losses.SoftTripleLoss(CLASSES, WIDTH, centers_per_class=2),
    "SphereFaceLoss": lambda: losses.SphereFaceLoss(CLASSES, WIDTH),
    "SubCenterArcFaceLoss": lambda: losses.SubCenterArcFaceLoss(num_classes=CLASSES, embedding_size=WIDTH),
}
PAIR: dict[str, Callable[[], nn.Module]] = {
    "CircleLoss": losses.CircleLoss,
    "ContrastiveLoss": losses.ContrastiveLoss,
    "DynamicSoftMarginLoss": losses.DynamicSoftMarginLoss,
    "FastAPLoss": losses.FastAPLoss,
    "GeneralizedLiftedStructureLoss": losses.GeneralizedLiftedStructureLoss,
    "HistogramLoss": lambda: losses.HistogramLoss(n_bins=20),
    "InstanceLoss": losses.InstanceLoss,
    "IntraPairVarianceLoss": losses.IntraPairVarianceLoss,
    "LiftedStructureLoss": losses.LiftedStructureLoss,
    "MarginLoss": lambda: losses.MarginLoss(num_classes=CLASSES, learn_beta=True),
    "MultiSimilarityLoss": losses.MultiSimilarityLoss,
    "NCALoss": losses.NCALoss,
    "NPairsLoss": losses.NPairsLoss,
    "NTXentLoss": losses.NTXentLoss,
    "PNPLoss": losses.PNPLoss,
    "RankedListLoss": lambda: losses.RankedListLoss(margin=0.4, Tn=10),
    "SignalToNoiseRatioContrastiveLoss": losses.SignalToNoiseRatioContrastiveLoss,
    "SmoothAPLoss": losses.SmoothAPLoss,
    "SupConLoss": losses.SupConLoss,
    "ThresholdConsistentMarginLoss": losses.ThresholdConsistentMarginLoss,
    "TupletMarginLoss": losses.TupletMarginLoss,
}
TRIPLET: dict[str, Callable[[], nn.Module]] = {
    "AngularLoss": losses.AngularLoss,
    "TripletMarginLoss": losses.TripletMarginLoss,
}
WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "CrossBatchMemory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, memory_size=64),
    "MultipleLosses": lambda: losses.MultipleLosses(
        [CurricularFaceLoss(CLASSES, WIDTH), losses.TripletMarginLoss()], weights=[1, 0.5]
    ),
    # Without labels: proxies of its own clusters, or two views of each image (here: itself under other gates).
    "ManifoldLoss": lambda: losses.ManifoldLoss(l=WIDTH, K=4),
    "SelfSupervisedLoss": lambda: losses.SelfSupervisedLoss(losses.NTXentLoss()),
    "VICRegLoss": losses.VICRegLoss,
}
TWO_VIEWS = ("SelfSupervisedLoss", "VICRegLoss")
LOSSES = {**PROXY, **PAIR, **TRIPLET, **WRAPPED}
# pml 2.9 keeps the graph of the batch before and then cannot go backward, with any model.
BROKEN = {"DynamicSoftMarginLoss": "backward through the graph a second time"}
# Bases to derive from, not losses.
BASES = {
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "GenericPairLoss",
    "WeightRegularizerMixin",
}
# What torch.compile takes as one graph. The others choose pairs or branch by values, which no graph can hold: torch
# compiles them in pieces.
ONE_GRAPH = (
    *(name for name in PROXY if name != "ProxyAnchorLoss"),
    "InstanceLoss",
    "ManifoldLoss",
    "NCALoss",
    "RankedListLoss",
    "VICRegLoss",
)
IN_PIECES = tuple(name for name in LOSSES if name not in (*ONE_GRAPH, *BROKEN))
QUICK = ("CurricularFaceLoss", "NormalizedSoftmaxLoss", "TripletMarginLoss")


def test_the_table_is_complete() -> None:
    known = {name for name, value in vars(losses).items() if inspect.isclass(value)}
    assert known - BASES == set(LOSSES) - {"CurricularFaceLoss"}


@pytest.fixture(scope="session")
def images_and_labels(embedded: Callable[[str], UnifiedDataset]) -> tuple[Tensor, Tensor]:
    """16 images, four of each of four classes, one of each distribution; labels with two columns."""
    dataset = embedded("train")
    assert dataset.num_classes == CLASSES
    batch = next(iter(MultiDistributionSampler(dataset.labels, 16, m=4, balance="uniform")))
    images, labels = zip(*[dataset[i] for i in batch], strict=True)
    return torch.stack(images), torch.stack(labels)


def compute(loss: Callable[..., Tensor], name: str, embed: Callable[[], Tensor], labels: Tensor) -> Tensor:
    """The loss of one batch, or of two views of it; ``embed`` gives another view at each call."""
    embeddings = embed()
    if name in TWO_VIEWS:
        second = embed()
        return loss(embeddings, second) if name == "SelfSupervisedLoss" else loss(embeddings, ref_emb=second)
    if name == "ManifoldLoss":
        return loss(embeddings)
    return loss(embeddings, labels[:, 0])


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in BROKEN])
def test_trains_puma(name: str, pretrained: Callable[[], nn.Module], images_and_labels: tuple[Tensor, Tensor]) -> None:
    images, labels = images_and_labels
    model = UnifiedEmbedder(pretrained(), EmbeddingHead(128, WIDTH)).train()
    loss = LOSSES[name]()
    parameters = list(loss.parameters())
    optimizers = [torch.optim.AdamW(model.param_groups(3e-4))]
    if parameters:
        optimizers.append(torch.optim.AdamW(parameters, 0.05))
    adapters = [p for n, p in model.named_parameters() if "adapter" in n]
    values, reached = [], 0.0
    for step in range(5):
        # The same gates in every step: the falling of the loss is to be seen, not the noise of the gates.
        torch.manual_seed(1)
        low_precision = step == 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
            value = compute(loss, name, lambda: model(images).float(), labels)
        assert value.ndim == 0
        assert value.isfinite()
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in [*model.parameters(), *parameters])
        reached = max([reached, *(p.grad.abs().max().item() for p in adapters if p.grad is not None)])
        for optimizer in optimizers:
            optimizer.step()
        values.append(value.item())
    assert reached > 0
    # An active memory makes the loss of later steps another one; its pairs grow in number.
    if name != "CrossBatchMemory":
        assert min(values[2:]) < values[0], values


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_in_pml_is_broken_without_us(name: str) -> None:
    loss, model = LOSSES[name](), nn.Linear(4, 4)

    def step() -> None:
        loss(model(torch.randn(8, 4)), torch.arange(8) // 2).backward()

    step()
    with pytest.raises(RuntimeError, match=BROKEN[name]):
        step()


@pytest.mark.parametrize("name", [*PROXY, "ContrastiveLoss", "MultiSimilarityLoss", "TripletMarginLoss"])
def test_forward_and_backward_under_autocast_keep_float32_parameters(
    name: str, pretrained: Callable[[], nn.Module], images_and_labels: tuple[Tensor, Tensor]
) -> None:
    images, labels = images_and_labels
    model = UnifiedEmbedder(pretrained(), EmbeddingHead(128, WIDTH)).train()
    loss = LOSSES[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(images)
    value = loss(embeddings.float(), labels[:, 0])
    value.backward()
    assert value.isfinite()
    assert all(p.dtype == torch.float32 for p in [*model.parameters(), *loss.parameters()])


def exhaustive(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def compare_compiled(name: str, labels: Tensor, fullgraph: bool) -> None:
    """Value and gradients of the compiled loss are those of the loss; and something was compiled."""
    # Compiled anew, also the second time in a test: its graphs are counted.
    torch.compiler.reset()
    counters.clear()
    loss = LOSSES[name]()
    reference = copy.deepcopy(loss)
    embeddings = nn.functional.normalize(torch.randn(len(labels), WIDTH)).requires_grad_()
    twin = embeddings.detach().clone().requires_grad_()
    compiled = torch.compile(loss, fullgraph=fullgraph, backend="aot_eager")
    results = []
    for module, rows in ((compiled, embeddings), (reference, twin)):
        torch.manual_seed(0)
        # The second view stands still, so that only one tensor of embeddings has a gradient to compare.
        value = compute(module, name, iter([rows, rows.detach().roll(1, 1)]).__next__, labels)
        value.backward()
        results.append((value.detach(), rows.grad, [p.grad for p in module.parameters()]))
    torch.testing.assert_close(*results)
    assert counters["stats"]["unique_graphs"] >= 1
    if fullgraph:
        assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", exhaustive(ONE_GRAPH))
def test_compiles_as_one_graph(name: str, images_and_labels: tuple[Tensor, Tensor]) -> None:
    compare_compiled(name, images_and_labels[1], fullgraph=True)


@pytest.mark.parametrize("name", exhaustive(IN_PIECES))
def test_compiles_in_pieces_but_not_as_one_graph(name: str, images_and_labels: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(TorchDynamoException):
        compare_compiled(name, images_and_labels[1], fullgraph=True)
    compare_compiled(name, images_and_labels[1], fullgraph=False)
