"""GatheredLoss in one process; tests/pml_contract/test_distributed.py has several."""

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from puma_plugin.losses import CurricularFaceLoss, GatheredLoss

EMBEDDINGS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def test_several_losses_in_one_process_are_themselves() -> None:
    loss = losses.MultipleLosses(
        {"a": losses.TripletMarginLoss(), "b": CurricularFaceLoss(3, 4)}, weights={"a": 1, "b": 2}
    )
    loss.eval()
    assert torch.equal(GatheredLoss(loss)(EMBEDDINGS, LABELS), loss(EMBEDDINGS, LABELS))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (losses.SelfSupervisedLoss(losses.NTXentLoss()), "of embeddings and labels .* got SelfSupervisedLoss"),
        (torch.nn.CrossEntropyLoss(), "got CrossEntropyLoss"),
        (DistributedLossWrapper(losses.NTXentLoss()), "give it the loss inside"),
        (losses.MultipleLosses([DistributedLossWrapper(losses.NTXentLoss())]), "give it the loss inside"),
    ],
)
def test_what_cannot_be_gathered_is_refused(loss: torch.nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        GatheredLoss(loss)
