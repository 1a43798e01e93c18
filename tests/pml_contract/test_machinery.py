"""pml's real trainers, testers, hooks, miners and calculators drive our components, with two-column labels."""

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import record_keeper
import torch
from pytorch_metric_learning import losses, miners, testers, trainers
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN, InferenceModel
from pytorch_metric_learning.utils.logging_presets import HookContainer
from torch import nn
from torch.utils.data import Dataset

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import embed
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import UnifiedEmbedder
from puma_plugin.regularizers import PromptPenalty
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.testers import MultiDistributionTester
from puma_plugin.trainers import UnifiedTrainer

Data = Callable[[str], UnifiedDataset]
Make = Callable[[], UnifiedEmbedder]


def optimizers(model: UnifiedEmbedder, loss: nn.Module, **more: nn.Module) -> dict[str, torch.optim.Optimizer]:
    found: dict[str, torch.optim.Optimizer] = {"trunk_optimizer": torch.optim.AdamW(model.param_groups(1e-3))}
    for name, module in {"metric_loss": loss, **more}.items():
        if list(module.parameters()):
            found[f"{name}_optimizer"] = torch.optim.AdamW(module.parameters(), 0.1)
    return found


def parts(data: Data, make: Make) -> tuple[UnifiedDataset, UnifiedEmbedder, CurricularFaceLoss]:
    dataset, model = data("train"), make()
    return dataset, model, CurricularFaceLoss(dataset.num_classes, 16, embedding_regularizer=PromptPenalty(model))


class Recorder:
    """An end_of_iteration_hook that keeps the losses."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, trainer: trainers.BaseTrainer) -> None:
        self.values.append(float(trainer.losses["total_loss"].detach()))


def assert_falling(values: list[float]) -> None:
    assert all(math.isfinite(v) for v in values)
    third = len(values) // 3
    assert sum(values[-third:]) < sum(values[:third])


@pytest.mark.parametrize("workers", [0, 1])
def test_metric_loss_only_unchanged(embedded: Data, tiny: Make, workers: int) -> None:
    dataset, model, loss = parts(embedded, tiny)
    frozen = model.trunk.patch_embed.proj.weight.clone()
    recorder = Recorder()
    trainer = trainers.MetricLossOnly(
        {"trunk": model},
        optimizers(model, loss),
        16,
        {"metric_loss": loss},
        dataset,
        sampler=MultiDistributionSampler(dataset.labels, 16, m=4, balance="uniform", batches_per_epoch=10),
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        dataloader_num_workers=workers,
        end_of_iteration_hook=recorder,
    )
    trainer.train(num_epochs=2)
    assert len(recorder.values) == 20
    assert_falling(recorder.values)
    assert torch.equal(frozen, model.trunk.patch_embed.proj.weight)
    assert model.trunk.training
    assert not model.trunk.patch_embed.training


def test_train_with_classifier(embedded: Data, tiny: Make) -> None:
    dataset, model, loss = parts(embedded, tiny)
    classifier = nn.Linear(16, dataset.num_classes)
    recorder = Recorder()
    trainers.TrainWithClassifier(
        {"trunk": model, "classifier": classifier},
        optimizers(model, loss, classifier=classifier),
        16,
        {"metric_loss": loss, "classifier_loss": nn.CrossEntropyLoss()},
        dataset,
        sampler=MultiDistributionSampler(dataset.labels, 16, batches_per_epoch=12),
        dataloader_num_workers=0,
        end_of_iteration_hook=recorder,
    ).train()
    assert_falling(recorder.values)


def test_deep_adversarial_trains_what_its_optimizer_has(embedded: Data, tiny: Make) -> None:
    """That trainer lets every weight of the trunk require a gradient, see the README's limits."""
    dataset, model, _ = parts(embedded, tiny)
    embedder, generator = nn.Linear(16, 8), nn.Linear(48, 16)
    optimizer = torch.optim.SGD(model.param_groups(lr=0.1))
    mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainers.DeepAdversarialMetricLearning(
        g_triplets_per_anchor=5,
        metric_alone_epochs=0,
        g_alone_epochs=0,
        models={"trunk": model, "embedder": embedder, "generator": generator},
        optimizers={
            "trunk_optimizer": optimizer,
            "embedder_optimizer": torch.optim.SGD(embedder.parameters(), 0.1),
            "generator_optimizer": torch.optim.SGD(generator.parameters(), 0.1),
        },
        batch_size=16,
        loss_funcs={name: losses.TripletMarginLoss() for name in ("metric_loss", "synth_loss", "g_adv_loss")},
        mining_funcs={"tuple_miner": miners.TripletMarginMiner(type_of_triplets="all")},
        dataset=dataset,
        sampler=MultiDistributionSampler(dataset.labels, 16, m=4, batches_per_epoch=3),
        loss_weights=dict.fromkeys(("metric_loss", "synth_loss", "g_adv_loss", "g_hard_loss", "g_reg_loss"), 1.0),
        dataloader_num_workers=0,
    ).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) == (id(parameter) not in mine), name


class Pairs(Dataset[Any]):
    """(anchor, other image of the same class, label): what two-stream training takes."""

    def __init__(self, dataset: UnifiedDataset) -> None:
        self.dataset = dataset
        self.by_class = [torch.nonzero(dataset.labels[:, 0] == c)[:, 0] for c in range(dataset.num_classes)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        image, label = self.dataset[index]
        others = self.by_class[int(label[0])]
        return image, self.dataset[int(others[torch.randint(len(others), ())])][0], label


@pytest.mark.parametrize("mine", [False, True])
def test_two_stream_metric_loss(embedded: Data, tiny: Make, mine: bool) -> None:
    dataset, model, loss = parts(embedded, tiny)
    recorder = Recorder()
    trainers.TwoStreamMetricLoss(
        {"trunk": model},
        optimizers(model, loss),
        16,
        {"metric_loss": loss},
        Pairs(dataset),
        sampler=MultiDistributionSampler(dataset.labels, 16, balance=2.0, batches_per_epoch=9),
        mining_funcs={"tuple_miner": miners.TripletMarginMiner()} if mine else {},
        dataloader_num_workers=0,
        end_of_iteration_hook=recorder,
    ).train()
    assert_falling(recorder.values)


def keeper(folder: Path) -> Any:
    writer = record_keeper.RecordWriter(str(folder))
    return record_keeper.RecordKeeper(
        record_writer=writer, attributes_to_search_for=c_f.list_of_recordable_attributes_list_names()
    )


@pytest.mark.parametrize("trainer_class", [trainers.MetricLossOnly, UnifiedTrainer])
def test_stock_hooks_log_save_reload_and_stop_by_the_harmonic_mean(
    embedded: Data, tiny: Make, tmp_path: Path, trainer_class: type
) -> None:
    dataset, model, loss = parts(embedded, tiny)
    test = embedded("test")
    hooks = HookContainer(
        keeper(tmp_path / "logs"), primary_metric="precision_at_1", validation_split_name="harmonic", log_freq=1
    )
    tester = MultiDistributionTester(
        end_of_testing_hook=hooks.end_of_testing_hook, dataloader_num_workers=0, batch_size=64
    )
    # The model is put back after every epoch: from the second on nothing gets better, so that patience runs out.
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate = hooks.end_of_epoch_hook(tester, {"val": test}, str(tmp_path / "models"), patience=1)

    def put_back_and_evaluate(trainer: trainers.BaseTrainer) -> bool:
        if trainer.epoch > 1:
            model.load_state_dict(start)
        return evaluate(trainer)

    more = {"progress": False, "prompt_penalty_weight": 0} if trainer_class is UnifiedTrainer else {}
    trainer = trainer_class(
        {"trunk": model, "embedder": nn.Identity()},
        optimizers(model, loss),
        16,
        {"metric_loss": loss},
        dataset,
        sampler=MultiDistributionSampler(dataset.labels, 16, batches_per_epoch=3),
        dataloader_num_workers=0,
        end_of_iteration_hook=hooks.end_of_iteration_hook,
        end_of_epoch_hook=put_back_and_evaluate,
        **more,
    )
    trainer.train(num_epochs=8)
    best, value = hooks.get_best_epoch_and_accuracy(tester, "harmonic")
    assert trainer.epoch == best + 2 < 8
    history = hooks.get_accuracy_history(tester, "harmonic", metrics=["precision_at_1"])
    assert history["epoch"] == list(range(1, trainer.epoch + 1))
    assert max(history["precision_at_1_level0"]) == value
    assert history["precision_at_1_level0"][-1] == tester.result.harmonic_mean["recall_at_1"]
    for entry in ("unified", "arithmetic", "worst", "digit", "val"):
        assert len(hooks.get_accuracy_history(tester, entry)["epoch"]) == trainer.epoch
    with sqlite3.connect(tmp_path / "logs" / "logs.db") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
    assert any("HARMONIC" in name for name in tables)

    saved = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert f"trunk_best{best}.pth" in saved
    assert f"metric_loss_best{best}.pth" in saved
    kept = torch.load(tmp_path / "models" / f"trunk_best{best}.pth", weights_only=True)
    with torch.no_grad():
        model.head.linear.weight.zero_()
        loss.W.zero_()
    next_epoch = hooks.load_latest_saved_models(trainer, str(tmp_path / "models"), best=True)
    assert next_epoch == best + 1
    assert torch.equal(model.state_dict()["head.linear.weight"], kept["head.linear.weight"])
    assert loss.W.abs().max() > 0
    assert loss.t.abs().max() > 0


def test_pmls_testers_on_the_joined_dataset(embedded: Data, tiny: Make) -> None:
    dataset, model = embedded("test"), tiny()
    result = embed(model, dataset, batch_size=64).evaluate()
    calculator = AccuracyCalculator(include=("precision_at_1", "r_precision", "mean_average_precision_at_r"))
    arguments = {"accuracy_calculator": calculator, "dataloader_num_workers": 0, "batch_size": 64}
    whole = testers.GlobalEmbeddingSpaceTester(**arguments).test({"val": dataset}, 1, model)["val"]
    assert whole["precision_at_1_level0"] == pytest.approx(result.unified["recall_at_1"], abs=1e-12)
    assert whole["mean_average_precision_at_r_level0"] == pytest.approx(result.unified["map_at_r"], abs=1e-12)
    # Column 1 as the parent: the mean over the distributions of what each is in itself.
    parents = testers.WithSameParentLabelTester(**arguments).test({"val": dataset}, 1, model)["val"]
    assert parents["precision_at_1_level0"] == pytest.approx(result.arithmetic_mean["recall_at_1"], abs=1e-12)
    assert parents["r_precision_level0"] == pytest.approx(result.arithmetic_mean["r_precision"], abs=1e-12)


@pytest.mark.parametrize("knn", [FaissKNN, lambda: CustomKNN(CosineSimilarity(), batch_size=100)])
def test_accuracy_calculator(embedded: Data, tiny: Make, knn: Callable[[], Any]) -> None:
    found = embed(tiny(), embedded("test"), batch_size=64)
    result = found.evaluate()
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    expected = AccuracyCalculator(include=names, knn_func=knn()).get_accuracy(found.embeddings, found.labels[:, 0])
    ours = (result.unified["recall_at_1"], result.unified["r_precision"], result.unified["map_at_r"])
    # Two ways of computing a distance may order nearly equal ones differently; FaissKNN's way is ours.
    tolerance = 1e-12 if knn is FaissKNN else 2e-3
    for name, value in zip(names, ours, strict=True):
        assert value == pytest.approx(expected[name], abs=tolerance)
    # Labels of two columns, compared as a whole, find the same hits.
    both = AccuracyCalculator(
        include=names[:1], knn_func=knn(), label_comparison_fn=lambda a, b: (a == b).all(dim=-1)
    ).get_accuracy(found.embeddings, found.labels)
    assert both["precision_at_1"] == pytest.approx(expected["precision_at_1"], abs=1e-12)


def test_inference_model(embedded: Data, tiny: Make) -> None:
    dataset, model = embedded("test"), tiny()
    inference = InferenceModel(model)
    inference.train_knn(dataset)
    images = torch.stack([dataset[i][0] for i in range(3)])
    distances, indices = inference.get_nearest_neighbors(images, k=1)
    assert indices[:, 0].tolist() == [0, 1, 2]
    assert distances.abs().max() < 1e-5
    assert inference.is_match(images[:1], images[:1])


@pytest.mark.parametrize(
    "miner",
    [
        miners.AngularMiner(),
        miners.BatchEasyHardMiner(),
        miners.BatchHardMiner(),
        miners.DistanceWeightedMiner(),
        miners.HDCMiner(),
        miners.MultiSimilarityMiner(),
        miners.PairMarginMiner(),
        miners.TripletMarginMiner(),
        miners.UniformHistogramMiner(),
    ],
    ids=lambda miner: type(miner).__name__,
)
def test_miners(miner: nn.Module) -> None:
    loss = CurricularFaceLoss(4, 8)
    embeddings = torch.nn.functional.normalize(torch.randn(16, 8)).requires_grad_()
    labels = torch.stack([torch.arange(16) % 4, torch.arange(16) % 4 // 2], dim=1)
    value = loss(embeddings, labels[:, 0], miner(embeddings, labels[:, 0]))
    value.backward()
    assert value.isfinite()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_cross_batch_memory_takes_pair_losses_only() -> None:
    # It compares embeddings with older embeddings; a loss against proxies has no place for them.
    with pytest.raises(Exception, match="not supported for CurricularFaceLoss"):
        losses.CrossBatchMemory(CurricularFaceLoss(4, 8), 8)
    with pytest.raises(ValueError, match=r"CrossBatchMemory use a pair or triplet loss"):
        CurricularFaceLoss(4, 8)(
            torch.randn(2, 8), torch.tensor([0, 1]), None, torch.randn(3, 8), torch.zeros(3).long()
        )


def test_cross_batch_memory_trains_puma(embedded: Data, tiny: Make) -> None:
    dataset, model = embedded("train"), tiny()
    loss = losses.CrossBatchMemory(losses.ContrastiveLoss(), 16, memory_size=64, miner=miners.MultiSimilarityMiner())
    trainer = UnifiedTrainer(
        {"trunk": model},
        optimizers(model, loss),
        16,
        {"metric_loss": loss},
        dataset,
        sampler=MultiDistributionSampler(dataset.labels, 16, m=4, balance="uniform", batches_per_epoch=6),
        dataloader_num_workers=0,
        progress=False,
    )
    trainer.train()
    assert math.isfinite(trainer.history[0]["metric_loss"])
    assert loss.has_been_filled
