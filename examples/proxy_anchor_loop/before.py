"""A plain PyTorch loop with ProxyAnchor."""

import torch
from pytorch_metric_learning import losses
from torch.utils.data import DataLoader

from embedded_data import STEPS, WIDTH, backbone, train_sets

train = train_sets()["texture"]
model = torch.nn.Sequential(backbone(), torch.nn.Linear(WIDTH, 64))
loss_function = losses.ProxyAnchorLoss(train.num_classes, 64)
optimizer = torch.optim.AdamW(
    [{"params": model.parameters(), "lr": 1e-3}, {"params": loss_function.parameters(), "lr": 1e-1}]
)
loader = DataLoader(train, batch_size=48, shuffle=True, drop_last=True)

model.train()
step = 0
while step < STEPS:
    for images, labels in loader:
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        print(f"step {step}: loss {loss.item():.4f}")
        if step == STEPS:
            break
