"""pml's unchanged MetricLossOnly, in the shape of its official example."""

import torch
from puma_plugin import adapt, datasets, losses, regularizers, testers
from pytorch_metric_learning import trainers

from embedded_data import STEPS, WIDTH, backbone, test_sets, train_sets

train, test = datasets.UnifiedDataset(train_sets()), datasets.UnifiedDataset(test_sets())
trunk = backbone()
adapt(trunk)
embedder = torch.nn.Linear(WIDTH, 64)
loss = losses.CurricularFaceLoss(train.num_classes, 64, embedding_regularizer=regularizers.PromptPenalty(trunk))
tester = testers.MultiDistributionTester(dataloader_num_workers=0)


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
