"""UnifiedTrainer on several processes: torchrun --nproc-per-node=2 torchrun_unified_trainer.py

The batch of 48 is that of all processes; the loss, its proxies and the model change as in one process.
"""

import puma_plugin
import torch
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import embed
from puma_plugin.losses import CurricularFaceLoss, GatheredLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.trainers import UnifiedTrainer
from torch.nn.parallel import DistributedDataParallel

from embedded_data import STEPS, WIDTH, backbone, test_sets, train_sets

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
train, test = UnifiedDataset(train_sets()), UnifiedDataset(test_sets())
model = UnifiedEmbedder(puma_plugin.adapt(backbone()), EmbeddingHead(WIDTH, 64))
loss = GatheredLoss(CurricularFaceLoss(train.num_classes, 64))
torch.manual_seed(rank)  # every process draws its own gates
trainer = UnifiedTrainer(
    {"trunk": DistributedDataParallel(model)},
    {
        "trunk_optimizer": torch.optim.AdamW(model.param_groups(lr=1e-4)),
        "metric_loss_optimizer": torch.optim.AdamW(loss.parameters(), 1e-1),
    },
    batch_size=48,
    loss_funcs={"metric_loss": loss},
    dataset=train,
    iterations_per_epoch=STEPS,
    dataloader_num_workers=0,
)
trainer.train()
result = embed(model, test, batch_size=256).evaluate()  # each process embeds its share
if rank == 0:
    print(trainer.history)
    print(result.table())
torch.distributed.destroy_process_group()
