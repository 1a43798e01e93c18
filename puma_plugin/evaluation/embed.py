"""Embed a dataset once, on one process or shared among several."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from puma_plugin.evaluation.result import RetrievalResult
from puma_plugin.evaluation.retrieval import Protocol, evaluate_retrieval
from puma_plugin.models.adapted_vit import require_mode
from puma_plugin.utils.distributed import rank, world_size
from puma_plugin.utils.evaluation_mode import evaluation_mode
from puma_plugin.utils.worker_signals import leave_signals_to_the_parent

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Embedded:
    """Embeddings of a whole dataset with what the evaluation needs to know of its items.

    Attributes:
        embeddings: (N, D) float32, on the CPU, in dataset order.
        labels: (N, 2) int64, class and distribution.
        item_ids: (N,) int64.
        distribution_names: name of each distribution.
        query_mask, gallery_mask: (N,) bool, or None for all.
        class_names: name of each class, or None.
        local_classes: (N,) int64, class numbers within each item's data set for "paper-code", or None for the default.
        recall_ks: further k for one distribution's own gallery, by its name.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor
    item_ids: torch.Tensor
    distribution_names: list[str]
    query_mask: torch.Tensor | None = None
    gallery_mask: torch.Tensor | None = None
    class_names: list[str] | None = None
    local_classes: torch.Tensor | None = None
    recall_ks: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def evaluate(
        self,
        ks: tuple[int, ...] = (1, 2, 4, 8),
        protocol: Protocol = "honest",
        progress: bool = False,
    ) -> RetrievalResult:
        """All metrics, see :func:`evaluate_retrieval`."""
        return evaluate_retrieval(
            self.embeddings,
            self.labels,
            self.item_ids,
            self.distribution_names,
            self.query_mask,
            self.gallery_mask,
            ks,
            distribution_ks=self.recall_ks,
            protocol=protocol,
            local_classes=self.local_classes,
            class_names=self.class_names,
            progress=progress,
        )


def embed(
    model: Callable[[torch.Tensor], torch.Tensor],
    dataset: Dataset[Any],
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    amp_dtype: torch.dtype | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    progress: bool = False,
    every_rank: bool = True,
) -> Embedded:
    """Embed every item of ``dataset`` with ``model`` in evaluation mode and without gradients.

    Under an initialised ``torch.distributed`` every rank has to call this: each embeds every world-size-th item, and
    gets the whole result in dataset order, each item once, whatever the remainder; buffers of the model that differ
    among ranks, as the running statistics of batch norms do, become those of rank 0.

    Args:
        model: images (B, ...) -> (B, D). A module is put into eval mode and back; anything else is called as it is.
        dataset: a ``UnifiedDataset``, or any dataset of (image, label) with ``labels`` (N, 2) and, if it has them,
            ``item_ids``, ``distribution_names``, ``class_names``, ``query_mask``, ``gallery_mask``, ``local_classes``,
            ``recall_ks``.
        batch_size: images at once, per process.
        device: where images go; default: the device of the model's first parameter, else the CPU.
        num_workers: of the data loader.
        amp_dtype: torch.bfloat16 or torch.float16 for autocast; None for the model's own precision, to which images are
            cast.
        collate_fn: of the data loader.
        progress: show a progress bar (on rank 0).
        every_rank: False: a rank that calls this embeds everything by itself, as under ``if rank == 0:``.

    Raises:
        ValueError: the dataset has no (N, 2) labels or no items, its items are no pairs, the model does not return
            (B, D), or its ``eval()`` does not reach its adapters.
    """
    labels = getattr(dataset, "labels", None)
    if labels is None or getattr(labels, "ndim", 0) != 2 or labels.shape[1] != 2:
        raise ValueError(
            "dataset needs an attribute labels of shape (N, 2), columns class and distribution: wrap your datasets in "
            "UnifiedDataset({name: dataset, ...}), and take its subset(indices) in place of torch's Subset"
        )
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise ValueError("dataset is empty: there is nothing to embed")
    number, ranks = (rank(), world_size()) if every_rank else (0, 1)
    mine = torch.arange(size)[number::ranks]
    loader = DataLoader(
        Subset(dataset, mine.tolist()),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn,
        worker_init_fn=leave_signals_to_the_parent,
        # Its own: looking at a model must not change the random numbers of the training that goes on.
        generator=torch.Generator(),
    )
    module = model if isinstance(model, torch.nn.Module) else None
    if module is not None:
        module = model = same_on_every_rank(module) if every_rank else without_ddp(module)
    target = torch.device(device) if device is not None else _device_of(module)
    dtype = None if amp_dtype is not None else _floating_type_of(module)
    chunks = []
    with torch.no_grad(), evaluation_mode(module), _autocast(target, amp_dtype):
        if module is not None:
            require_mode(module, training=False)
        for batch in tqdm(loader, desc="embed", disable=not progress or number != 0, leave=False):
            images = _images_of(batch)
            output = model(_moved(images, target, dtype))
            _require_embeddings(output, images)
            chunks.append(output.float().cpu())
    # A rank may have no item at all; its width is settled by the others.
    part = torch.cat(chunks) if chunks else torch.empty(0, 0)
    names = getattr(dataset, "distribution_names", None)
    ids = getattr(dataset, "item_ids", None)
    labels = torch.as_tensor(labels, dtype=torch.int64).cpu()
    return Embedded(
        embeddings=gather_rows(part, mine, size) if every_rank else part,
        labels=labels,
        item_ids=torch.arange(size) if ids is None else torch.as_tensor(ids, dtype=torch.int64).cpu(),
        distribution_names=list(names)
        if names is not None
        else [f"distribution {d}" for d in range(int(labels[:, 1].max()) + 1)],
        query_mask=getattr(dataset, "query_mask", None),
        gallery_mask=getattr(dataset, "gallery_mask", None),
        class_names=getattr(dataset, "class_names", None),
        local_classes=getattr(dataset, "local_classes", None),
        recall_ks=getattr(dataset, "recall_ks", {}),
    )


def without_ddp(module: torch.nn.Module) -> torch.nn.Module:
    """The module without DistributedDataParallel, which would wait for all ranks in each pass to exchange buffers."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def same_on_every_rank(module: torch.nn.Module) -> torch.nn.Module:
    """:func:`without_ddp`, and under several ranks, which all have to call this, with the buffers of rank 0."""
    module = without_ddp(module)
    if world_size() > 1:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        own = {name: tensor for name, tensor in module.state_dict().items() if name not in parameters}
        first: list[Any] = [{name: tensor.cpu() for name, tensor in own.items() if isinstance(tensor, torch.Tensor)}]
        dist.broadcast_object_list(first, src=0)
        for name, value in first[0].items():
            own[name].copy_(value)
    return module


def gather_rows(rows: torch.Tensor, positions: torch.Tensor, size: int) -> torch.Tensor:
    """Put together (size, D) rows of which every process holds some.

    Args:
        rows: (n, D) on this process, on the CPU; n may differ between processes and be 0.
        positions: (n,) where each row belongs.
        size: rows in all.

    Raises:
        ValueError: a position is held by no process or by several.
    """
    parts = [(rows, positions)]
    if world_size() > 1:
        gathered: list[Any] = [None] * world_size()
        dist.all_gather_object(gathered, (rows.numpy(), positions.numpy()))
        parts = [(torch.from_numpy(values), torch.from_numpy(where)) for values, where in gathered]
    where = torch.cat([p for _, p in parts])
    times = torch.bincount(where, minlength=size)
    if len(times) != size or bool((times != 1).any()):
        raise ValueError(f"positions must cover 0..{size - 1} exactly once over all processes")
    values = torch.cat([r for r, _ in parts if len(r)])
    joined = torch.empty_like(values)
    joined[where] = values
    return joined


def _device_of(module: torch.nn.Module | None) -> torch.device:
    parameter = next(module.parameters(), None) if module is not None else None
    return parameter.device if parameter is not None else torch.device("cpu")


def _floating_type_of(module: torch.nn.Module | None) -> torch.dtype | None:
    parameters = module.parameters() if module is not None else ()
    return next((parameter.dtype for parameter in parameters if parameter.dtype in _FLOATING), None)


def _images_of(batch: Any) -> Any:
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        what = f"{len(batch)} values" if isinstance(batch, list | tuple) else f"a {type(batch).__name__}"
        raise ValueError(
            f"a batch must be a pair (images, labels), got {what}; give a dataset of (image, label), or a collate_fn "
            "that makes such pairs"
        )
    return batch[0]


def _require_embeddings(output: Any, images: Any) -> None:
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise ValueError(f"model must return embeddings (B, D), got {got}")
    if isinstance(images, torch.Tensor) and len(output) != len(images):
        raise ValueError(f"model must return one embedding per image, got {len(output)} for {len(images)} images")


def _moved(images: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A batch on the device; what ``collate_fn`` gives may be no tensor, if it has a method ``to``."""
    is_cast = dtype is not None and isinstance(images, torch.Tensor) and images.is_floating_point()
    return images.to(device, dtype) if is_cast else images.to(device)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
