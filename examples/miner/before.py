"""Triplet loss with mined triplets and m images per class."""

import torch
from pytorch_metric_learning import losses, miners, samplers
from torch.utils.data import DataLoader

from embedded_data import STEPS, WIDTH, backbone, train_sets

train = train_sets()["texture"]
model = torch.nn.Sequential(backbone(), torch.nn.Linear(WIDTH, 64))
miner = miners.MultiSimilarityMiner()
loss_function = losses.TripletMarginLoss()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
sampler = samplers.MPerClassSampler(train.targets, m=4)
loader = DataLoader(train, batch_size=40, sampler=sampler, drop_last=True)

model.train()
for step, (images, labels) in enumerate(loader, start=1):
    embeddings = model(images)
    loss = loss_function(embeddings, labels, miner(embeddings, labels))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}")
    if step == STEPS:
        break
