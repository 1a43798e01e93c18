"""One process of test_distributed.py: ``python distributed_worker.py FOLDER RANK WORLD``. Not a test by itself.

The test imports it too, and runs the same functions as the only process.
"""

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, Sampler, SequentialSampler, TensorDataset

import puma_plugin
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import embed
from puma_plugin.losses import CurricularFaceLoss, GatheredLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.testers import MultiDistributionTester
from puma_plugin.trainers import UnifiedTrainer
from puma_plugin.trainers.random_states import random_state, set_random_state

CLASSES, WIDTH, BATCH = 10, 8, 16
LOSSES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "curricular per class": (lambda: CurricularFaceLoss(CLASSES, WIDTH), None),
    "curricular global, mined": (
        lambda: CurricularFaceLoss(CLASSES, WIDTH, ema="global"),
        miners.MultiSimilarityMiner(),
    ),
    "ProxyAnchor": (lambda: losses.ProxyAnchorLoss(CLASSES, WIDTH), None),
    "MultiSimilarity, mined": (losses.MultiSimilarityLoss, miners.MultiSimilarityMiner()),
    "multiple": (
        lambda: losses.MultipleLosses(
            [losses.MultiSimilarityLoss(), CurricularFaceLoss(CLASSES, WIDTH)], [miners.MultiSimilarityMiner(), None]
        ),
        None,
    ),
    "memory": (lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH, memory_size=32), None),
}


def build() -> tuple[UnifiedDataset, UnifiedEmbedder]:
    """47 images of three distributions, and a small model with all gates open, as each process draws its own."""
    torch.manual_seed(0)
    parts = {}
    for name, (count, classes) in {"a": (21, 4), "b": (14, 3), "c": (12, 3)}.items():
        labels = torch.arange(count) % classes
        parts[name] = TensorDataset(
            torch.randn(classes, 3, 16, 16)[labels] + 0.5 * torch.randn(count, 3, 16, 16), labels
        )
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    puma_plugin.adapt(vit, adapter_dim=4, pool_size=3, prompt_length=2, drop=0.0, init="paper")
    with torch.no_grad():
        for adapter in vit.adapters():
            adapter.up.normal_(0, 0.1)
    return UnifiedDataset(parts), UnifiedEmbedder(vit, EmbeddingHead(16, WIDTH))


def draw(dataset: UnifiedDataset, batch: list[int]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*[dataset[i] for i in batch], strict=True)
    return torch.stack(images), torch.stack(labels)[:, 0]


def parallel(module: nn.Module, world: int) -> nn.Module:
    return DistributedDataParallel(module) if world > 1 else module


def train(name: str, rank: int, world: int, on_local_batches: bool = False) -> dict[str, Any]:
    """Three steps; returns the losses, the gradients of the first step, and all weights and averages after the last."""
    dataset, model = build()
    # Every process draws other proxies at first; those of rank 0 count.
    torch.manual_seed(100 + rank)
    make, miner = LOSSES[name]
    loss = make()
    wrapped = parallel(loss, world) if on_local_batches else GatheredLoss(loss, miner)
    model_in_use = parallel(model, world)
    # Small steps: with 0.1 a difference in the images' seventh digit becomes one in the memory's fourth.
    optimizer = torch.optim.SGD([*model.trainable_parameters(), *loss.parameters()], 0.003)
    sampler = MultiDistributionSampler(dataset.labels, BATCH, m=2, balance="uniform", batches_per_epoch=3)
    result: dict[str, Any] = {"values": [], "gradients": None}
    for batch in sampler:
        images, labels = draw(dataset, batch)
        value = wrapped(model_in_use(images), labels)
        total = value + 1e3 * model.prompt_penalty()
        optimizer.zero_grad()
        total.backward()
        result["values"].append(value.detach())
        if result["gradients"] is None:
            named = [*model.named_parameters(), *((f"loss.{n}", p) for n, p in loss.named_parameters())]
            result["gradients"] = {n: p.grad.clone() for n, p in named if p.grad is not None}
        optimizer.step()
    result["state"] = {**model.state_dict(), **{f"loss.{n}": v for n, v in loss.state_dict().items()}}
    return result


def uneven(rank: int, world: int) -> dict[str, Tensor]:
    """Local batches of other sizes on each process."""
    torch.manual_seed(3)
    borders = {1: [0, 20], 2: [0, 3, 20], 4: [0, 3, 4, 13, 20]}[world]
    inputs, labels = torch.randn(20, 6), torch.arange(20) % CLASSES
    model, loss = nn.Linear(6, WIDTH), losses.ProxyAnchorLoss(CLASSES, WIDTH)
    mine = slice(borders[rank], borders[rank + 1])
    model_in_use = parallel(model, world)
    value = GatheredLoss(loss)(model_in_use(inputs[mine]), labels[mine])
    value.backward()
    return {"value": value.detach(), "model": model.weight.grad, "proxies": loss.proxies.grad}


def random_draws(rank: int, same_seeds: bool) -> dict[str, Any]:
    """A loss and a miner that draw at random, in processes that were seeded alike or, as is usual, differently."""
    torch.manual_seed(11)
    inputs = torch.randn(24, WIDTH)
    labels = torch.arange(24) % CLASSES
    margin = losses.MarginLoss(num_classes=CLASSES, learn_beta=True)
    mined = GatheredLoss(margin, miners.DistanceWeightedMiner(cutoff=0.1, nonzero_loss_cutoff=3.0))
    triplets = GatheredLoss(losses.TripletMarginLoss(triplets_per_anchor=1))
    size = 24 // distributed.get_world_size()
    mine = slice(rank * size, rank * size + size)
    torch.manual_seed(0 if same_seeds else rank)
    before = torch.get_rng_state()
    values = []
    for _ in range(4):
        for loss in (mined, triplets):
            value = loss(inputs[mine], labels[mine])
            if value.requires_grad:
                value.backward()
            values.append(value.detach())
    moved = not torch.equal(before, torch.get_rng_state())
    return {"values": torch.stack(values), "beta": margin.beta.grad, "moved": moved}


def taken_back() -> bool:
    """Whether generators that differ among the processes go on where each of them was."""
    torch.manual_seed(distributed.get_rank())
    states = random_state({})
    expected = torch.rand(3)
    torch.manual_seed(7)
    set_random_state(states, {})
    return torch.equal(torch.rand(3), expected)


def refusals() -> dict[str, str]:
    """What goes wrong with pml's own wrapper, and what ours refuses."""
    found = {}
    torch.manual_seed(5)
    embeddings = torch.randn(4, WIDTH) + distributed.get_rank()
    labels = torch.arange(4)
    torch.manual_seed(6)
    loss = CurricularFaceLoss(CLASSES, WIDTH)
    try:
        DistributedLossWrapper(loss)(embeddings, labels)
    except RuntimeError as error:
        found["pml wrapper"] = str(error)
    try:
        GatheredLoss(losses.TripletMarginLoss())(embeddings, labels, (labels, labels, labels))
    except ValueError as error:
        found["local indices"] = str(error)
    # The factor that pml's wrapper puts on proxies, which is why it is refused.
    proxies = losses.ProxyAnchorLoss(CLASSES, WIDTH)
    single = torch.autograd.grad(GatheredLoss(proxies)(embeddings, labels), proxies.proxies)[0]
    wrapped = torch.autograd.grad(DistributedLossWrapper(proxies)(embeddings, labels), proxies.proxies)[0]
    found["factor"] = str(round(float((wrapped / single).median()), 3))
    dataset, model = build()
    shared = DistributedDataParallel(model)
    plain, several = GatheredLoss(loss), losses.MultipleLosses
    for name, trunk, metric_loss in (
        ("bare loss", shared, loss),
        ("bare loss beside a gathered one", shared, several([plain, proxies])),
        ("gathered loss among several", shared, several([plain, losses.MultiSimilarityLoss()])),
        ("bare trunk", model, plain),
        ("bare trunk that is frozen", model, plain),
        ("bare head", nn.Sequential(DistributedDataParallel(model.trunk), model.head), plain),
        ("loss in DDP", shared, DistributedDataParallel(loss)),
        ("loss without weights", shared, losses.MultiSimilarityLoss()),
    ):
        optimizers = {
            "trunk_optimizer": torch.optim.SGD(model.trainable_parameters(), 0.1),
            "metric_loss_optimizer": torch.optim.SGD([*loss.parameters(), *proxies.parameters()], 0.1),
        }
        freeze = ["trunk"] if "frozen" in name else []
        try:
            UnifiedTrainer(
                {"trunk": trunk}, optimizers, BATCH, {"metric_loss": metric_loss}, dataset, freeze_these=freeze
            )
        except ValueError as error:
            found[name] = str(error)
    return found


class Batches(BatchSampler):
    """These ones, of one image each."""

    def __init__(self, batches: list[list[int]]) -> None:
        super().__init__(batches, 1, drop_last=False)

    def __iter__(self) -> Any:
        return iter(self.sampler)


def sharded(folder: Path) -> dict[str, str]:
    """What is said of weights that are shared out among the processes, and an adapter file of the gathered ones."""
    dataset, model = build()
    _, whole = build()
    for block in model.trunk.blocks:
        fully_shard(block)
    fully_shard(model)
    loss, proxies = GatheredLoss(losses.ContrastiveLoss()), losses.ProxyAnchorLoss(CLASSES, WIDTH)
    fully_shard(proxies)
    optimizers = {"trunk_optimizer": torch.optim.SGD(model.trainable_parameters(), 0.1)}

    def train(trunk: nn.Module, metric_loss: nn.Module) -> UnifiedTrainer:
        return UnifiedTrainer({"trunk": trunk}, optimizers, BATCH, {"metric_loss": metric_loss}, dataset)

    whole.requires_grad_(False)
    found = {}
    for name, call in (
        ("trainer", lambda: train(model, loss)),
        ("loss", lambda: train(whole, proxies)),
        ("save", lambda: puma_plugin.save_adapter(model, folder / "never.safetensors")),
        ("load", lambda: puma_plugin.load_adapter(model, folder / "never.safetensors")),
    ):
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    whole.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    puma_plugin.save_adapter(whole, folder / f"gathered{distributed.get_rank()}.safetensors")
    return found


def draws_alike(rank: int, world: int) -> dict[str, Any]:
    """With samplers that do and do not share out: how many steps were trained, the error, the warning."""
    dataset, model = build()
    trunk, loss = DistributedDataParallel(model), GatheredLoss(losses.ContrastiveLoss())

    def steps(sampler: Any, batch_size: int = 8) -> Any:
        optimizers = {"trunk_optimizer": torch.optim.SGD(model.trainable_parameters(), 0.0)}
        trainer = UnifiedTrainer(
            {"trunk": trunk}, optimizers, batch_size, {"metric_loss": loss}, dataset,
            sampler=sampler, iterations_per_epoch=2, dataloader_num_workers=0, progress=False,
        )  # fmt: skip
        refused = ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                trainer.train()
            except ValueError as error:
                refused = str(error)
        said = "".join(str(warning.message) for warning in caught if "draw the same" in str(warning.message))
        return trainer.global_step, refused, said

    def in_crops_of_its_own(sampler: Sampler[int]) -> Any:
        nonlocal dataset
        torch.manual_seed(rank)
        whole = dataset
        dataset = copy.copy(whole)
        dataset.transform = lambda image: image + 0.1 * torch.rand(())
        try:
            return steps(sampler)
        finally:
            dataset = whole

    def shuffled(seed: int) -> RandomSampler:
        return RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))

    def of_its_own(sampler: Sampler[int]) -> Any:
        """Each process holds other images than the others, so that equal positions are different items."""
        nonlocal dataset
        whole, dataset = dataset, dataset.subset(range(rank, len(dataset), world))
        try:
            return steps(sampler)
        finally:
            dataset = whole

    def per_class(seed: int) -> MPerClassSampler:
        np.random.seed(seed)  # noqa: NPY002
        return MPerClassSampler(dataset.targets, 2, 8)

    def four(number: int) -> list[int]:
        return list(range(4 * number, 4 * number + 4))

    return {
        "shuffled alike": steps(shuffled(0)),
        "m per class alike": steps(per_class(0)),
        "batches alike": steps(BatchSampler(shuffled(0), 8, drop_last=True)),
        "each the whole of ours": steps(MultiDistributionSampler(dataset.labels, 8, rank=0, world_size=1)),
        "first and last alike": steps(shuffled(rank % (world - 1))),
        "last two alike": steps(shuffled(min(rank, world - 2))),
        "small batches alike": steps(shuffled(0), batch_size=4),
        "shuffled by rank": steps(shuffled(rank)),
        "m per class by rank": steps(per_class(rank)),
        "alike in crops of its own": in_crops_of_its_own(shuffled(0)),
        "by rank in crops of its own": in_crops_of_its_own(shuffled(rank)),
        "images of its own": of_its_own(SequentialSampler(range(len(dataset) // world))),
        "shared out": steps(DistributedSampler(dataset)),
        "small batches shared out": steps(DistributedSampler(dataset), batch_size=4),
        "ours": steps(MultiDistributionSampler(dataset.labels, BATCH)),
        # The first is the same by chance, the second is not.
        "by chance": steps(Batches([[5], [rank]])),
        # Of more than two, one has the first batch of another, and the second of a third.
        "batches of several": steps(Batches([four(0 if rank < 2 else rank), four(5 if rank % 2 == 0 else 6 + rank)])),
    }


def own_statistics() -> nn.Module:
    """A model with statistics that each process gathered from images of its own."""
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 16 * 16))
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    norm(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(rank)))
    return norm


def evaluate(world: int) -> dict[str, Any]:
    """47 items: no number of processes divides them, and the ranks have different numbers of batches."""
    dataset, bare = build()
    model = parallel(bare, world)
    found = embed(model, dataset, batch_size=4)
    tester = MultiDistributionTester(dataloader_num_workers=0, batch_size=4)
    normed = {
        "embed": embed(own_statistics(), dataset, batch_size=4).embeddings,
        "tester": tester.get_all_embeddings(dataset, own_statistics())[0],
    }
    tester.test({"val": dataset}, 1, model)
    results = {"result": found.evaluate().to_dict(), "tester": tester.result.to_dict()}
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        alone = MultiDistributionTester(dataloader_num_workers=0, batch_size=4, every_rank=False)
        alone.test({"val": dataset}, 1, model)
        results["alone"] = alone.result.to_dict()
        results["embedded alone"] = embed(model, dataset, batch_size=4, every_rank=False).evaluate().to_dict()
    return {"embeddings": found.embeddings, "normed": normed, **results}


def run_trainer(folder: Path, world: int, epochs: int, resume: bool = False) -> dict[str, Any]:
    dataset, model = build()
    torch.manual_seed(7)
    loss = GatheredLoss(CurricularFaceLoss(CLASSES, WIDTH))
    trunk = parallel(model, world)
    trainer = UnifiedTrainer(
        {"trunk": trunk},
        {
            "trunk_optimizer": torch.optim.SGD(model.trainable_parameters(), 0.1, momentum=0.9),
            "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1),
        },
        BATCH,
        {"metric_loss": loss},
        dataset,
        dataloader_num_workers=0,
        progress=False,
        checkpoint_path=folder / f"trainer{world}.pt",
    )
    if resume:
        trainer.load_checkpoint(folder / "trainer2.pt")
    trainer.train(num_epochs=epochs)
    state = {**model.state_dict(), **loss.state_dict()}
    seed = trainer.dataloader.generator.initial_seed()
    return {"state": state, "losses": [entry["metric_loss"] for entry in trainer.history], "seed": seed}


def main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    results: dict[str, Any] = {"train": {name: train(name, rank, world) for name in LOSSES}}
    results["ddp loss"] = {
        name: train(name, rank, world, on_local_batches=True) for name in ("curricular per class", "ProxyAnchor")
    }
    results["random draws"] = {"same": random_draws(rank, True), "different": random_draws(rank, False)}
    results["taken back"] = taken_back()
    results["uneven"] = uneven(rank, world)
    results["refusals"] = refusals()
    results["sharded"] = sharded(folder)
    results["draws alike"] = draws_alike(rank, world)
    results["evaluate"] = evaluate(world)
    results["trainer"] = run_trainer(folder, world, 2)
    torch.save(results, folder / f"results{rank}.pt")
    with contextlib.suppress(RuntimeError):
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
