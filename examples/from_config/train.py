"""A config-driven script: every part is looked up by name in pytorch-metric-learning's namespaces."""

import sys
from pathlib import Path

import puma_plugin
import torch
import yaml
from pytorch_metric_learning import datasets, losses, miners, regularizers, samplers, testers, trainers

from embedded_data import STEPS, WIDTH, backbone, test_sets, train_sets

puma_plugin.register()
config = yaml.safe_load(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("config.yaml")).read_text())


def build(namespace, part, *args, **more):
    settings = dict(config[part])
    return getattr(namespace, settings.pop("name"))(*args, **settings, **more)


train, test = build(datasets, "dataset", train_sets()), build(datasets, "dataset", test_sets())
trunk = puma_plugin.adapt(backbone(), **config["adapt"])
embedder = torch.nn.Linear(WIDTH, config["embedding_size"])
loss = build(
    losses,
    "loss",
    num_classes=train.num_classes,
    embedding_size=config["embedding_size"],
    weight_regularizer=build(regularizers, "weight_regularizer"),
)
trainer = build(
    trainers,
    "trainer",
    models={"trunk": trunk, "embedder": embedder},
    optimizers={
        "trunk_optimizer": torch.optim.AdamW(trunk.param_groups(lr=1e-4)),
        "embedder_optimizer": torch.optim.AdamW(embedder.parameters(), 1e-3),
        "metric_loss_optimizer": torch.optim.AdamW(loss.parameters(), 1e-1),
    },
    batch_size=config["sampler"]["batch_size"],
    loss_funcs={"metric_loss": loss},
    mining_funcs={"tuple_miner": build(miners, "miner")},
    dataset=train,
    sampler=build(samplers, "sampler", train.labels),
    iterations_per_epoch=STEPS,
)
trainer.train()
tester = build(testers, "tester")
tester.test({"test": test}, 1, trunk, embedder)
print(tester.result.table())
puma_plugin.unregister()
