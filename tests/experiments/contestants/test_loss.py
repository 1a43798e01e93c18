"""Losses by name: their usual values, their miners, and the batches that they need."""

import pytest
import torch
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as pml_losses

from puma_plugin.experiments.contestants.loss import USUAL, images_per_class, make_loss, make_miner
from puma_plugin.experiments.settings.config import LossConfig


@pytest.mark.parametrize("name", USUAL)
def test_every_loss_of_the_table_gives_a_gradient(name: str) -> None:
    loss, miner = make_loss(LossConfig(name), 6, 16), make_miner(LossConfig(name))
    embeddings = torch.nn.functional.normalize(torch.randn(24, 16), dim=1).requires_grad_()
    labels = torch.arange(6).repeat_interleave(4)
    pairs = None if miner is None else miner(embeddings, labels)
    loss(embeddings, labels, pairs).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    # Proxies or several images per class: one of the two.
    assert (images_per_class(LossConfig(name)) is None) == (len(list(loss.parameters())) > 0)


def test_usual_values_are_those_of_the_public_code() -> None:
    triplet = make_loss(LossConfig("TripletMarginLoss"), 6, 16)
    assert isinstance(triplet.distance, distances.CosineSimilarity)
    assert triplet.margin == 0.05
    assert isinstance(make_miner(LossConfig("TripletMarginLoss")), miners.BatchHardMiner)
    arcface = make_loss(LossConfig("ArcFaceLoss"), 6, 16)
    assert (round(float(arcface.margin), 3), arcface.scale) == (0.499, 64)
    soft = make_loss(LossConfig("SoftTripleLoss"), 6, 16)
    assert soft.fc.shape == (16, 60)


def test_what_is_given_wins() -> None:
    config = LossConfig(
        "MultiSimilarityLoss",
        {"beta": 40, "distance": "LpDistance"},
        miner="DistanceWeightedMiner",
        miner_arguments={"cutoff": 0.4},
        images_per_class=2,
    )
    loss, miner = make_loss(config, 6, 16), make_miner(config)
    assert isinstance(loss, pml_losses.MultiSimilarityLoss)
    assert (loss.alpha, loss.beta) == (2, 40)
    assert isinstance(loss.distance, distances.LpDistance)
    assert isinstance(miner, miners.DistanceWeightedMiner)
    assert miner.cutoff == 0.4
    assert images_per_class(config) == 2
    assert make_miner(LossConfig("MultiSimilarityLoss", miner="none")) is None


def test_losses_outside_the_table() -> None:
    assert images_per_class(LossConfig("ContrastiveLoss")) == 4
    assert images_per_class(LossConfig("NormalizedSoftmaxLoss")) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LossConfig("NoSuchLoss"), "loss.name is 'NoSuchLoss'"),
        (LossConfig("TripletMarginLoss", images_per_class=1), "would never see two; give 2 or more"),
        (LossConfig("TripletMarginLoss", miner="NoMiner"), "loss.miner is 'NoMiner'"),
        (LossConfig("TripletMarginLoss", miner_arguments={"colour": 1}), "do not fit BatchHardMiner"),
        (LossConfig("ArcFaceLoss", miner_arguments={"epsilon": 1}), "has no miner"),
        (LossConfig("ArcFaceLoss", {"distance": "Taxi"}), "loss.arguments.distance is 'Taxi'"),
    ],
)
def test_refusals(config: LossConfig, message: str) -> None:
    def build() -> None:
        images_per_class(config)
        make_loss(config, 6, 16)
        make_miner(config)

    with pytest.raises(ValueError, match=message):
        build()
