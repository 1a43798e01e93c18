"""pml's unchanged MetricLossOnly, in the shape of its official example."""

import torch
from pytorch_metric_learning import losses, testers, trainers

from embedded_data import STEPS, WIDTH, backbone, test_sets, train_sets

train, test = train_sets()["texture"], test_sets()["texture"]
trunk = backbone()
embedder = torch.nn.Linear(WIDTH, 64)
loss = losses.ArcFaceLoss(train.num_classes, 64)
tester = testers.GlobalEmbeddingSpaceTester(dataloader_num_workers=0)


def evaluate(trainer):
    results = tester.test({"test": test}, trainer.epoch, trunk, embedder)
    for name, accuracies in results.items():
        print(name, accuracies["precision_at_1_level0"])


trainer = trainers.MetricLossOnly(
    models={"trunk": trunk, "embedder": embedder},
    optimizers={
        "trunk_optimizer": torch.optim.AdamW(trunk.parameters(), 1e-3),
        "embedder_optimizer": torch.optim.AdamW(embedder.parameters(), 1e-3),
        "metric_loss_optimizer": torch.optim.AdamW(loss.parameters(), 1e-1),
    },
    batch_size=48,
    loss_funcs={"metric_loss": loss},
    dataset=train,
    iterations_per_epoch=STEPS,
    dataloader_num_workers=0,
    end_of_epoch_hook=evaluate,
)
trainer.train(num_epochs=1)
