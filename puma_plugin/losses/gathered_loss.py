"""A metric loss over the batch of all processes, with the gradients of one process."""

from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import BaseMetricLossFunction, CrossBatchMemory, MultipleLosses
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor

from puma_plugin.losses.common_draws import drawn_from, state_digest
from puma_plugin.losses.whole_batch import whole_batch
from puma_plugin.utils.distributed import world_size


class GatheredLoss(torch.nn.Module):
    """Compute a loss on the batch of all processes; right for losses with and without proxies.

    Every process gathers all embeddings and computes the loss of the whole batch. The gradient that goes back into this
    process' embeddings is multiplied by the number of processes, because DistributedDataParallel averages the model's
    gradients; the gradient of the loss's own parameters (proxies) is not, because every process computes it in full.
    Model, proxies and buffers then change exactly as in one process on the whole batch. So: wrap the *model* in
    DistributedDataParallel, wrap the *loss* in this, and do not wrap the loss in DistributedDataParallel.

    (pml's DistributedLossWrapper multiplies the loss itself, and with it the proxies' gradient.)

    The batch is the concatenation in the order of the ranks. Local batches may differ in size. Proxies and buffers are
    set to those of rank 0 before the first batch. Losses and miners that draw at random draw the same in every process,
    however their generators were seeded. In one process it is the loss itself.

    Args:
        loss: a pml loss of embeddings and labels, CrossBatchMemory around one, or MultipleLosses of such.
        miner: a pml miner, run on the gathered batch. A miner of one process' batch cannot be used, as its indices name
            items of that batch only.

    Raises:
        TypeError: ``loss`` is none of these, or is or holds a DistributedLossWrapper.
        ValueError: ``indices_tuple`` of the local batch is given.
    """

    def __init__(self, loss: torch.nn.Module, miner: BaseMiner | None = None) -> None:
        if not isinstance(loss, BaseMetricLossFunction | CrossBatchMemory | MultipleLosses | DistributedLossWrapper):
            raise TypeError(
                "loss must be a pml loss of embeddings and labels (BaseMetricLossFunction, CrossBatchMemory or "
                f"MultipleLosses), got {type(loss).__name__}"
            )
        if any(isinstance(part, DistributedLossWrapper) for part in loss.modules()):
            raise TypeError(
                "GatheredLoss replaces pml's DistributedLossWrapper: give it the loss inside: "
                "GatheredLoss(wrapper.loss)"
            )
        if miner is not None and not isinstance(miner, BaseMiner):
            raise TypeError(f"miner must be a pml miner, got {type(miner)}")
        super().__init__()
        self.loss = loss
        self.miner = miner
        self._synchronised = False

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of the whole batch, the same on every process. embeddings (B, D), labels (B,) of this process."""
        if ref_emb is not None or ref_labels is not None:
            raise ValueError("GatheredLoss takes no reference embeddings: the gathered batch is its own reference")
        if world_size() > 1:
            if indices_tuple is not None:
                raise ValueError(
                    "indices_tuple names items of this process' batch, but the loss is taken over all processes' "
                    "items: give the miner to GatheredLoss(loss, miner=...) instead of to the trainer"
                )
            self._synchronise()
            sizes, draws = _gather_facts(len(embeddings), embeddings.device)
            labels = _gather(labels.to(embeddings.device), sizes)
            embeddings = _Gather.apply(embeddings, sizes)
            if len(set(draws)) > 1:
                with drawn_from(_seed_of_first(embeddings.device), embeddings.device):
                    return self._whole_loss(embeddings, labels, indices_tuple)
        return self._whole_loss(embeddings, labels, indices_tuple)

    def _whole_loss(self, embeddings: Tensor, labels: Tensor, indices_tuple: tuple[Tensor, ...] | None) -> Tensor:
        if self.miner is not None:
            if indices_tuple is not None:
                raise ValueError("give either a miner to GatheredLoss or indices_tuple, not both")
            indices_tuple = self.miner(embeddings, labels)
        with whole_batch():
            return self.loss(embeddings, labels, indices_tuple)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Logits of the loss inside, where it has them."""
        return self.loss.get_logits(embeddings)

    @torch.no_grad()
    def _synchronise(self) -> None:
        """Proxies drawn independently on every rank would stay different for good."""
        if self._synchronised:
            return
        for tensor in [*self.loss.parameters(), *self.loss.buffers()]:
            dist.broadcast(tensor, src=0)
        self._synchronised = True


class _Gather(torch.autograd.Function):
    """Concatenate over ranks; backward gives this rank its rows of the gradient, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gather(values, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.split(ctx.sizes)[dist.get_rank()] * len(ctx.sizes), None


def _gather_facts(size: int, device: torch.device) -> tuple[list[int], list[int]]:
    """Of every process: the size of its batch, and the digest of its generators' states."""
    mine = torch.tensor([size, state_digest(device)], device=device)
    facts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(facts, mine)
    sizes, digests = torch.stack(facts).t().tolist()
    return sizes, digests


def _seed_of_first(device: torch.device) -> int:
    """Drawn by rank 0, whose generator it moves, so that a training that is resumed there draws what it would have."""
    seed = torch.randint(2**31, ()) if dist.get_rank() == 0 else torch.zeros((), dtype=torch.int64)
    seed = seed.to(device)
    dist.broadcast(seed, src=0)
    return int(seed)


def _gather(values: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate rows of all ranks; shorter ones travel padded to the longest."""
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
