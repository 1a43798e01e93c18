"""A trunk that is given its process' share of the batch, if need be in pieces."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from puma_plugin.models.adapted_vit import find_adapted, refuse_several_adapted


class BatchShare(nn.Module):
    """Runs a trunk on this process' share of the batch as one process would run it on the whole.

    In training, gates are drawn for the batch of all processes, and each process takes those of its images. So the
    processes must hold equal states of torch's CPU generator, or of the model's ``gate_generator`` where it has one
    (seed them alike), and equal shares, as those of ``MultiDistributionSampler``; the training is then the same for any
    number of processes.

    A share of more than ``max_batch`` images goes through the trunk in pieces. Only the features of a piece are kept,
    and its activations are computed again in the backward pass (activation checkpointing), so that memory is that of
    one piece, for one more forward pass. The pieces are as few as possible and as equal as possible. The loss sees the
    features of all pieces together. That is right for every loss, while the usual accumulation of gradients, a sum of
    the losses of the pieces, is wrong for those that compare the images of a batch with each other.

    Args:
        module: images (B, channels, H, W) to features (B, C); adapted or not.
        max_batch: largest piece; None: no pieces.
        rank, world_size: of this process.
        compiled: training passes go through ``torch.compile``, with a graph for each size of pieces. (A module that is
            compiled already is not right here where pieces differ in size: once torch has made a graph for any size,
            it recomputes pieces by another graph than their first pass had, and refuses.)

    Other draws of the trunk in training (dropout) repeat in the second pass, but do depend on the number of processes
    and pieces. Batch normalisation in training takes the statistics of the share, which then cannot go in pieces.

    Raises:
        ValueError: ``max_batch`` below 1, a rank outside of the world size, or several adapted models; in training, a
            share of more than ``max_batch`` images where batch normalisation takes the statistics of the batch.
    """

    # See models.adapted_vit.without_wrappers.
    is_transparent = True

    def __init__(
        self,
        module: nn.Module,
        max_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, or None for no pieces, got {max_batch}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..world_size - 1, got rank {rank} of {world_size}")
        refuse_several_adapted(module, "BatchShare")
        self.module = module
        self.max_batch = max_batch
        self.rank, self.world_size = rank, world_size
        self.compiled = compiled

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, C) of the share (B, channels, H, W)."""
        if not self.training:
            return self.module(images)
        count = math.ceil(len(images) / (self.max_batch or max(len(images), 1)))
        if count > 1:
            self._refuse_batch_statistics(len(images))
        gates = self._draw_gates(len(images), images.device)
        if count <= 1:
            return self._run(images, gates)
        pieces = []
        for start, end in itertools.pairwise(index * len(images) // count for index in range(count + 1)):
            own = [None if gate is None else gate[start:end] for gate in gates]
            pieces.append(checkpoint(self._run, images[start:end], own, use_reentrant=False))
        return torch.cat(pieces)

    def _refuse_batch_statistics(self, images: int) -> None:
        for name, part in self.module.named_modules():
            if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
                raise ValueError(
                    f"max_batch={self.max_batch} would take {images} images through the trunk in pieces, but "
                    f"{name or 'it'} ({type(part).__name__}) normalises by the statistics of the batch, which those of "
                    "a piece are not: use max_batch=None, or call eval() of such layers behind each train(), as pml's "
                    "trainers do with freeze_trunk_batchnorm=True"
                )

    def _draw_gates(self, samples: int, device: torch.device) -> list[Tensor | None]:
        adapted = find_adapted(self.module)
        if adapted is None:
            return []
        mine = slice(self.rank * samples, (self.rank + 1) * samples)
        drawn = adapted.draw_gates(samples * self.world_size)
        kept = [gate[mine] for gate in drawn if gate is not None]
        # Together: each copy to a GPU would wait for all that it has to do.
        moved = iter(torch.stack(kept).to(device).unbind() if kept else ())
        return [None if gate is None else next(moved) for gate in drawn]

    def _run(self, images: Tensor, gates: list[Tensor | None]) -> Tensor:
        adapted = find_adapted(self.module)
        call = _compiled_call() if self.compiled else _call
        with contextlib.nullcontext() if adapted is None else adapted.given_gates(gates):
            return call(self.module, images)


def _call(module: nn.Module, images: Tensor) -> Tensor:
    return module(images)


@functools.cache
def _compiled_call() -> Callable[[nn.Module, Tensor], Tensor]:
    """Kept outside of the module, which could not be copied or pickled with it."""
    return torch.compile(_call, dynamic=False)
