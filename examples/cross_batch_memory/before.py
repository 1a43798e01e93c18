"""Contrastive loss against a memory of former batches."""

import torch
from pytorch_metric_learning import losses, miners, samplers
from torch.utils.data import DataLoader

from embedded_data import STEPS, WIDTH, backbone, train_sets

train = train_sets()["texture"]
model = torch.nn.Sequential(backbone(), torch.nn.Linear(WIDTH, 64))
loss_function = losses.CrossBatchMemory(
    losses.ContrastiveLoss(), embedding_size=64, memory_size=512, miner=miners.PairMarginMiner()
)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
loader = DataLoader(train, batch_size=40, sampler=samplers.MPerClassSampler(train.targets, m=4), drop_last=True)

model.train()
for step, (images, labels) in enumerate(loader, start=1):
    loss = loss_function(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}")
    if step == STEPS:
        break
