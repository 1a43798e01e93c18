"""A plain PyTorch loop with ProxyAnchor."""

import puma_plugin
import torch
from pytorch_metric_learning import losses
from torch.utils.data import DataLoader

from embedded_data import STEPS, WIDTH, backbone, train_sets

train = puma_plugin.datasets.UnifiedDataset(train_sets())
model = torch.nn.Sequential(puma_plugin.adapt(backbone()), torch.nn.Linear(WIDTH, 64))
loss_function = losses.ProxyAnchorLoss(train.num_classes, 64)
optimizer = torch.optim.AdamW(
    [{"params": model.parameters(), "lr": 1e-3}, {"params": loss_function.parameters(), "lr": 1e-1}]
)
loader = DataLoader(train, batch_sampler=puma_plugin.samplers.MultiDistributionSampler(train.labels, 48))

model.train()
step = 0
while step < STEPS:
    for images, labels in loader:
        loss = loss_function(model(images), labels[:, 0]) + model[0].prompt_penalty()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        print(f"step {step}: loss {loss.item():.4f}")
        if step == STEPS:
            break
