"""Triplet loss with mined triplets and m images per class."""

import puma_plugin
import torch
from pytorch_metric_learning import losses, miners, samplers
from torch.utils.data import DataLoader

from embedded_data import STEPS, WIDTH, backbone, train_sets

train = puma_plugin.datasets.UnifiedDataset(train_sets())
model = torch.nn.Sequential(puma_plugin.adapt(backbone()), torch.nn.Linear(WIDTH, 64))
miner = miners.MultiSimilarityMiner()
loss_function = losses.TripletMarginLoss()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
sampler = samplers.MPerClassSampler(train.targets, m=4)
loader = DataLoader(train, batch_size=40, sampler=sampler, drop_last=True)

model.train()
for step, (images, labels) in enumerate(loader, start=1):
    embeddings, labels = model(images), labels[:, 0]
    loss = loss_function(embeddings, labels, miner(embeddings, labels)) + model[0].prompt_penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}")
    if step == STEPS:
        break
