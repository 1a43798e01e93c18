"""DistributedDataParallel with gloo; start with torchrun --nproc-per-node=2."""

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from embedded_data import STEPS, WIDTH, backbone, train_sets

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
train = train_sets()["texture"]
model = DistributedDataParallel(torch.nn.Sequential(backbone(), torch.nn.Linear(WIDTH, 64)))
loss_function = DistributedLossWrapper(losses.MultiSimilarityLoss())
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
loader = DataLoader(train, batch_size=24, sampler=DistributedSampler(train), drop_last=True)

model.train()
step = 0
while step < STEPS:
    loader.sampler.set_epoch(step)
    for images, labels in loader:
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if rank == 0:
            print(f"step {step}: loss {loss.item():.4f}")
        if step == STEPS:
            break
torch.distributed.destroy_process_group()
