"""PUMA on eight distributions in a plain PyTorch loop, with nothing of pytorch-metric-learning but the loss's base."""

import puma_plugin
import torch
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import embed
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.samplers import MultiDistributionSampler
from torch.utils.data import DataLoader

from embedded_data import STEPS, WIDTH, backbone, test_sets, train_sets

train, test = UnifiedDataset(train_sets()), UnifiedDataset(test_sets())
model = UnifiedEmbedder(puma_plugin.adapt(backbone()), EmbeddingHead(WIDTH, 64))
criterion = CurricularFaceLoss(train.num_classes, 64)
optimizer = torch.optim.AdamW([*model.param_groups(lr=1e-4), {"params": criterion.parameters(), "lr": 1e-1}])
sampler = MultiDistributionSampler(train.labels, batch_size=48, balance=2.0)
loader = DataLoader(train, batch_sampler=sampler)

model.train()
step, epoch = 0, 0
while step < STEPS:
    sampler.set_epoch(epoch)
    for images, labels in loader:
        loss = criterion(model(images), labels[:, 0]) + model.prompt_penalty()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.trainable_parameters(), 1.0)
        optimizer.step()
        step += 1
        print(f"step {step}: loss {loss.item():.4f}")
        if step == STEPS:
            break
    epoch += 1
print(embed(model, test, batch_size=256).evaluate().table())
