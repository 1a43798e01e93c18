"""PUMA on eight distributions with UnifiedTrainer: checkpoints, resume, evaluation of every epoch."""

import sys
from pathlib import Path

import puma_plugin
import torch
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import embed
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.trainers import UnifiedTrainer

from embedded_data import STEPS, WIDTH, backbone, test_sets, train_sets

EPOCHS = 2
train, test = UnifiedDataset(train_sets()), UnifiedDataset(test_sets())
model = UnifiedEmbedder(puma_plugin.adapt(backbone()), EmbeddingHead(WIDTH, 64))
loss = CurricularFaceLoss(train.num_classes, 64)


def evaluate(trainer: UnifiedTrainer) -> dict[str, float]:
    result = embed(model, test, batch_size=256).evaluate()
    print(result.table())
    return {"harmonic mean": result.harmonic_mean["recall_at_1"], "leak": result.leak}


checkpoint = Path(sys.argv[1] if len(sys.argv) > 1 else "unified_trainer.pt")
trainer = UnifiedTrainer(
    {"trunk": model},
    {
        "trunk_optimizer": torch.optim.AdamW(model.param_groups(lr=1e-4)),
        "metric_loss_optimizer": torch.optim.AdamW(loss.parameters(), 1e-1),
    },
    batch_size=48,
    loss_funcs={"metric_loss": loss},
    dataset=train,
    iterations_per_epoch=STEPS,
    dataloader_num_workers=0,
    amp_dtype=torch.bfloat16,
    checkpoint_path=checkpoint,
    evaluate=evaluate,
)
if checkpoint.exists():
    trainer.load_checkpoint(checkpoint)
trainer.train(num_epochs=EPOCHS)
for entry in trainer.history:
    print(entry)
