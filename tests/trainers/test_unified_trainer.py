"""UnifiedTrainer: what it adds to pml's trainer, and that a stopped run continues as if it had not stopped."""

import logging
import math
import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pytorch_metric_learning import losses, miners, trainers
from pytorch_metric_learning.samplers import HierarchicalSampler, MPerClassSampler
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.utils.data import Dataset, Subset

import puma_plugin
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import EmbeddingHead, UnifiedEmbedder
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.trainers import NonFiniteLossError, UnifiedTrainer


class Noisy(Dataset[Any]):
    """Images around class means, with noise from the global generators as augmentations have it."""

    def __init__(self, classes: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.means = torch.randn(classes, 3, 16, 16, generator=generator)
        self.targets = [i % classes for i in range(count)]
        self.poisoned: int | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = self.targets[index]
        noise = 0.3 * torch.randn(3, 16, 16) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        image = self.means[label] + noise
        return image * (math.nan if index == self.poisoned else 1), label


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


class Run:
    """A small real training: adapted ViT, head, CurricularFace, AdamW with a schedule."""

    def __init__(self, seed: int = 0, own_gates: bool = False, **arguments: Any) -> None:
        seed_everything(seed)
        self.parts = {"a": Noisy(4, 22, 1), "b": Noisy(3, 10, 2)}
        self.dataset = UnifiedDataset(self.parts)
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
        )
        puma_plugin.adapt(vit, adapter_dim=4, pool_size=3, prompt_length=2)
        if own_gates:
            vit.gate_generator = torch.Generator().manual_seed(5)
        self.model = UnifiedEmbedder(vit, EmbeddingHead(16, 8))
        self.loss = CurricularFaceLoss(self.dataset.num_classes, 8)
        self.optimizers: dict[str, Any] = {
            "trunk_optimizer": torch.optim.AdamW(self.model.param_groups(1e-3)),
            "metric_loss_optimizer": torch.optim.SGD(self.loss.parameters(), 0.1, momentum=0.9),
        }
        schedulers = {
            "trunk_scheduler_by_iteration": torch.optim.lr_scheduler.CosineAnnealingLR(
                self.optimizers["trunk_optimizer"], 20
            ),
            "metric_loss_scheduler_by_epoch": torch.optim.lr_scheduler.StepLR(
                self.optimizers["metric_loss_optimizer"], 1, 0.5
            ),
        }
        settings = {"dataloader_num_workers": 0, "lr_schedulers": schedulers, "progress": False, **arguments}
        self.trainer = UnifiedTrainer(
            {"trunk": self.model}, self.optimizers, 6, {"metric_loss": self.loss}, self.dataset, **settings
        )

    def state(self) -> dict[str, torch.Tensor]:
        return {**self.model.state_dict(), **{f"loss.{k}": v for k, v in self.loss.state_dict().items()}}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def test_learns_and_records() -> None:
    run = Run()
    frozen = run.model.trunk.patch_embed.proj.weight.clone()
    run.trainer.train(num_epochs=8)
    history = run.trainer.history
    assert [entry["epoch"] for entry in history] == list(range(1, 9))
    assert history[-1]["metric_loss"] < 0.8 * history[0]["metric_loss"]
    assert all(
        entry["total_loss"] == pytest.approx(entry["metric_loss"] + entry["prompt_penalty"]) for entry in history
    )
    assert history[0]["prompt_penalty"] > 0
    assert run.trainer.global_step == 8 * 5
    assert torch.equal(frozen, run.model.trunk.patch_embed.proj.weight)
    assert run.loss.t.abs().max() > 0


def test_history_holds_the_mean_over_an_epoch_and_the_seconds_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    steps: list[dict[str, float]] = []

    def after_step(trainer: UnifiedTrainer) -> None:
        steps.append({name: value.item() for name, value in trainer.losses.items()})

    # A step takes two seconds. An evaluation is no training.
    run = Run(evaluate=lambda trainer: passes(100), end_of_iteration_hook=after_step)
    run.loss.register_forward_pre_hook(lambda module, inputs: passes(2))
    run.trainer.train(num_epochs=2)
    for entry, own in zip(run.trainer.history, (steps[:5], steps[5:]), strict=True):
        assert entry["seconds"] == 5 * 2
        for name in ("metric_loss", "prompt_penalty", "total_loss"):
            assert entry[name] == pytest.approx(sum(step[name] for step in own) / 5)
    # The schedules went on by 10 of 20 iterations, and by two epochs.
    trunk, proxies = (optimizer.param_groups[0]["lr"] for optimizer in run.optimizers.values())
    assert (trunk, proxies) == (pytest.approx(1e-3 * 10 / 2), pytest.approx(0.1 / 4))


def test_one_step_is_the_plain_computation() -> None:
    run = Run(clip_value=None, prompt_penalty_weight=10.0)
    twin = Run(clip_value=None, prompt_penalty_weight=10.0)
    positions = next(iter(MultiDistributionSampler(twin.dataset.labels, 6)))
    run.trainer.iterations_per_epoch = 1
    seed_everything(1)
    run.trainer.train()
    seed_everything(1)
    twin.model.train()
    images, labels = zip(*[twin.dataset[i] for i in positions], strict=True)
    value = twin.loss(twin.model(torch.stack(images)), torch.stack(labels)[:, 0]) + 10 * twin.model.prompt_penalty()
    value.backward()
    for optimizer in twin.optimizers.values():
        optimizer.step()
    assert run.trainer.batch_positions == positions
    assert run.trainer.history[0]["total_loss"] == pytest.approx(value.item())
    assert_equal(run.state(), twin.state())


@pytest.mark.parametrize(
    ("given", "metric", "penalty"),
    [
        (None, 1.0, 0.5),
        ({"metric_loss": 3.0}, 3.0, 0.5),
        ({"metric_loss": 3.0, "prompt_penalty": 7.0}, 3.0, 7.0),
    ],
)
def test_weights_of_the_losses(given: dict[str, float] | None, metric: float, penalty: float) -> None:
    run = Run(loss_weights=given, prompt_penalty_weight=0.5)
    run.trainer.iterations_per_epoch = 1
    run.model.trunk.prompt_pool.keys.data.mul_(30)  # a penalty of the size of the loss
    values: list[float] = []
    run.loss.register_forward_hook(lambda module, inputs, output: values.append(output.item()))
    penalty_before = run.model.prompt_penalty().item()
    run.trainer.train()
    assert penalty_before > 0.1
    expected = metric * values[0] + penalty * penalty_before
    assert run.trainer.history[0]["total_loss"] == pytest.approx(expected)


def test_clips_every_gradient_by_value() -> None:
    run = Run(clip_value=1e-3)
    run.trainer.iterations_per_epoch = 1
    seen = {}

    def hook(trainer: UnifiedTrainer) -> None:
        seen.update({n: p.grad.abs().max().item() for n, p in run.model.named_parameters() if p.grad is not None})
        seen["W"] = run.loss.W.grad.abs().max().item()  # type: ignore[union-attr]

    run.trainer.end_of_iteration_hook = hook
    run.trainer.train()
    assert max(seen.values()) == pytest.approx(1e-3)
    assert seen["W"] == pytest.approx(1e-3)


# Loss scaling may skip the very first step, after which torch finds that a scheduler came before the optimizer.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    run = Run(amp_dtype=dtype)
    seen: list[torch.dtype] = []
    run.loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    features: list[torch.dtype] = []
    run.model.trunk.patch_embed.proj.register_forward_hook(lambda m, i, out: features.append(out.dtype))
    run.trainer.train(num_epochs=2)
    assert set(features) == {dtype}
    assert set(seen) == {torch.float32}
    assert all(p.dtype == torch.float32 for p in [*run.model.parameters(), *run.loss.parameters()])
    assert run.trainer.scaler.is_enabled() == (dtype is torch.float16)
    assert math.isfinite(run.trainer.history[-1]["total_loss"])


@pytest.mark.parametrize("own_gates", [False, True])
def test_resume_between_epochs_is_exact(tmp_path: Path, own_gates: bool) -> None:
    whole = Run(own_gates=own_gates)
    whole.trainer.train(num_epochs=4)
    path = tmp_path / "run" / "state.pt"
    first = Run(own_gates=own_gates, checkpoint_path=path)
    first.trainer.train(num_epochs=2)
    second = Run(own_gates=own_gates, checkpoint_path=path)
    second.trainer.load_checkpoint(path)
    torch.randn(100)  # what happens before train() does not matter
    second.trainer.train(num_epochs=4)
    assert_equal(second.state(), whole.state())
    assert without_seconds(second.trainer.history) == without_seconds(whole.trainer.history)
    assert second.trainer.global_step == 20


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("at", [1, 7, 9, 10])
def test_resume_within_an_epoch_is_exact(tmp_path: Path, at: int) -> None:
    whole = Run(amp_dtype=torch.float16)
    whole.trainer.train(num_epochs=3)
    path = tmp_path / "state.pt"

    def stop(trainer: UnifiedTrainer) -> None:
        if trainer.global_step == at:
            trainer.save_checkpoint(path)
            raise KeyboardInterrupt

    first = Run(amp_dtype=torch.float16, end_of_iteration_hook=stop)
    with pytest.raises(KeyboardInterrupt):
        first.trainer.train(num_epochs=3)
    second = Run(amp_dtype=torch.float16)
    second.trainer.load_checkpoint(path)
    second.trainer.train(num_epochs=3)
    assert_equal(second.state(), whole.state())
    assert without_seconds(second.trainer.history) == without_seconds(whole.trainer.history)


def test_train_called_again_continues_as_one_call() -> None:
    whole = Run()
    whole.trainer.train(num_epochs=3)
    pieces = Run()
    pieces.trainer.train(num_epochs=1)
    pieces.trainer.train(num_epochs=3)
    assert_equal(pieces.state(), whole.state())
    assert [entry["epoch"] for entry in pieces.trainer.history] == [1, 2, 3]


def test_iterations_per_epoch_of_ones_own_do_not_restart_the_sampler() -> None:
    run = Run(iterations_per_epoch=3)
    positions: list[list[int]] = []
    run.trainer.end_of_iteration_hook = lambda trainer: positions.append(trainer.batch_positions)
    run.trainer.train(num_epochs=2)
    run.trainer.train(num_epochs=4)
    sampler = MultiDistributionSampler(run.dataset.labels, 6)
    assert positions == [batch for _ in range(3) for batch in sampler][:12]


def test_every_epoch_has_another_order_also_for_samplers_with_set_epoch() -> None:
    epochs: list[int] = []

    class Sampler(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    run = Run()
    run.trainer.sampler = Sampler(run.dataset)
    run.trainer.train(num_epochs=3)
    assert epochs == [0, 1, 2]
    assert run.trainer.global_step == 3 * 5  # 32 images: the last batch of two is left out


def test_an_epoch_chosen_by_its_number_has_its_own_batches() -> None:
    whole, chosen = Run(), Run()
    batches: dict[int, list[list[int]]] = {}
    for run in (whole, chosen):
        run.trainer.end_of_iteration_hook = lambda trainer: batches.setdefault(id(trainer), []).append(
            trainer.batch_positions
        )
    whole.trainer.train(num_epochs=3)
    chosen.trainer.train(start_epoch=3, num_epochs=3)
    assert batches[id(chosen.trainer)] == batches[id(whole.trainer)][10:]
    assert [entry["epoch"] for entry in chosen.trainer.history] == [3]


def test_workers_and_pml_samplers() -> None:
    run = Run(dataloader_num_workers=1)
    run.trainer.train(num_epochs=2)
    assert len(run.trainer.history) == 2
    other = Run()
    sampler = MPerClassSampler(other.dataset.labels[:, 0], 2, batch_size=6, length_before_new_iter=12)
    other.trainer.sampler = sampler
    other.trainer.train()
    assert other.trainer.global_step == 2
    other.trainer.end_of_iteration_hook = lambda trainer: trainer.save_checkpoint("never")
    with pytest.raises(ValueError, match="save between epochs"):
        other.trainer.train(num_epochs=2)


def test_pmls_hierarchical_sampler_hands_out_batches() -> None:
    run = Run()
    run.trainer.sampler = HierarchicalSampler(run.dataset.labels, 6, 3, batches_per_super_tuple=2)
    batches: list[torch.Tensor] = []
    run.trainer.end_of_iteration_hook = lambda trainer: batches.append(run.dataset.labels[trainer.batch_positions])
    run.trainer.train(num_epochs=2)
    assert len(batches) == 4
    for labels in batches:  # three items of one class of each distribution
        assert labels[:, 1].sort().values.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(labels[:, 0].unique()) == 2


def test_workers_are_seeded_by_run_and_epoch(tmp_path: Path) -> None:
    path, seeds = tmp_path / "state.pt", []

    def run(**arguments: Any) -> Run:
        return Run(
            iterations_per_epoch=5,
            end_of_epoch_hook=lambda trainer: seeds.append(trainer.dataloader.generator.initial_seed()),
            **arguments,
        )

    run().trainer.train(num_epochs=2)
    run(checkpoint_path=path).trainer.train(num_epochs=1)
    resumed = run()
    resumed.trainer.load_checkpoint(path)
    resumed.trainer.train(num_epochs=2)
    first, second, *again = seeds
    assert again == [first, second]
    other = run().trainer
    other.seed = 1
    other.train()
    assert len({first, second, seeds[-1]}) == 3


def test_evaluation_runs_every_nth_and_the_last_epoch(tmp_path: Path) -> None:
    called = []

    def evaluate(trainer: UnifiedTrainer) -> dict[str, float]:
        called.append(trainer.epoch)
        return {"score": float(trainer.epoch)}

    run = Run(evaluate=evaluate, evaluate_every=2, checkpoint_path=tmp_path / "state.pt")
    run.trainer.train(num_epochs=5)
    assert called == [2, 4, 5]
    assert [entry.get("score") for entry in run.trainer.history] == [None, 2.0, None, 4.0, 5.0]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["history"][-1]["score"] == 5.0


def test_nan_stops_with_step_and_items_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run = Run(checkpoint_path=path, clip_value=None)
    run.trainer.train(num_epochs=1)
    good, kept = run.state(), path.read_bytes()
    good = {name: tensor.clone() for name, tensor in good.items()}
    run.parts["b"].poisoned = 7
    with pytest.raises(NonFiniteLossError, match=r"metric_loss is nan.*b\[7\].*state\.pt") as caught:
        run.trainer.train(num_epochs=2)
    assert caught.value.epoch == 2
    assert f"iteration {caught.value.iteration}" in str(caught.value)
    assert run.dataset.item_ids[22 + 7].item() in caught.value.item_ids
    assert len(caught.value.item_ids) == 6
    assert path.read_bytes() == kept
    again = Run()
    again.trainer.load_checkpoint(path)
    assert_equal(again.state(), good)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    run = Run()
    run.trainer.iterations_per_epoch = 1
    run.loss.W.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in run.state().items() if name != "loss.t"}
    with pytest.raises(NonFiniteLossError, match="gradient"):
        run.trainer.train()
    after = {name: tensor for name, tensor in run.state().items() if name != "loss.t"}
    assert_equal(before, after)


def test_checkpoint_holds_no_frozen_weights_and_refuses_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run = Run()
    run.trainer.train()
    run.trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)
    assert not any("patch_embed" in name for name in state["models"]["trunk"]["tensors"])
    assert set(state["loss_funcs"]["metric_loss"]) == {"W", "t"}

    with pytest.raises(FileNotFoundError):
        Run().trainer.load_checkpoint(tmp_path / "other.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        Run().trainer.load_checkpoint(damaged)
    torch.save({"something": 1}, damaged)
    with pytest.raises(ValueError, match="no checkpoint of UnifiedTrainer"):
        Run().trainer.load_checkpoint(damaged)

    other = Run()
    with torch.no_grad():
        other.model.trunk.patch_embed.proj.weight.add_(1)
    with pytest.raises(ValueError, match="frozen weights"):
        other.trainer.load_checkpoint(path)
    other = Run()
    other.trainer.models["trunk"].head = EmbeddingHead(16, 4)
    with pytest.raises(ValueError, match=r"other shape .*\(8, 16\) instead of \(4, 16\)"):
        other.trainer.load_checkpoint(path)
    other = Run(lr_schedulers={})
    with pytest.raises(ValueError, match="lr_schedulers"):
        other.trainer.load_checkpoint(path)
    other = Run(sampler=MultiDistributionSampler(run.dataset.labels, 6, seed=1))
    with pytest.raises(ValueError, match="other labels or settings"):
        other.trainer.load_checkpoint(path)


def test_what_cannot_be_loaded_safely_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run = Run()
    run.trainer.history.append({"epoch": 0, "path": tmp_path})
    with pytest.raises(TypeError, match="weights_only"):
        run.trainer.save_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


class Wrapped(torch.nn.Module):
    """A user's own net, whose parts happen to have the names that wrappers give them."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.module = inner
        self.projection = torch.nn.Linear(8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.projection(self.module(images))


def test_a_part_called_module_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    def make() -> tuple[UnifiedTrainer, Wrapped]:
        run = Run()
        net = Wrapped(run.model)
        run.optimizers["trunk_optimizer"].add_param_group({"params": list(net.projection.parameters())})
        trainer = UnifiedTrainer(
            {"trunk": net}, run.optimizers, 6, {"metric_loss": run.loss}, run.dataset,
            prompt_penalty_weight=0.0, dataloader_num_workers=0, progress=False,
        )  # fmt: skip
        return trainer, net

    first, trained = make()
    first.train()
    first.save_checkpoint(tmp_path / "state.pt")
    second, loaded = make()
    second.load_checkpoint(tmp_path / "state.pt")
    assert_equal(loaded.state_dict(), trained.state_dict())


def test_what_the_end_of_an_epoch_does_is_in_its_checkpoint(tmp_path: Path) -> None:
    """A scheduler stepped by hand, and random numbers drawn, as pml's testers in hooks do."""

    def run(**arguments: Any) -> Run:
        made = Run(**arguments)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            made.optimizers["trunk_optimizer"], mode="max", factor=0.5, patience=0
        )
        made.trainer.lr_schedulers = {"trunk_scheduler_by_plateau": plateau}

        def hook(trainer: UnifiedTrainer) -> None:
            torch.randn(7)
            trainer.step_lr_plateau_schedulers(1.0)

        made.trainer.end_of_epoch_hook = hook
        return made

    whole = run()
    whole.trainer.train(num_epochs=3)
    path = tmp_path / "state.pt"
    run(checkpoint_path=path).trainer.train(num_epochs=1)
    second = run(checkpoint_path=path)
    second.trainer.load_checkpoint(path)
    second.trainer.train(num_epochs=3)
    assert_equal(second.state(), whole.state())
    rates = [made.optimizers["trunk_optimizer"].param_groups[0]["lr"] for made in (second, whole)]
    assert rates[0] == rates[1]


def test_an_epoch_after_which_the_hook_stops_is_the_last(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run = Run(
        checkpoint_path=path, checkpoint_every=5, evaluate_every=5, evaluate=lambda trainer: {"score": 1.0},
        end_of_epoch_hook=lambda trainer: trainer.epoch < 2,
    )  # fmt: skip
    run.trainer.train(num_epochs=9)
    assert [entry.get("score") for entry in run.trainer.history] == [None, 1.0]
    assert torch.load(path, weights_only=True)["progress"]["epoch"] == 3
    # An epoch that is evaluated anyway is not evaluated again because it is the last.
    called = []
    run = Run(evaluate=lambda trainer: called.append(trainer.epoch), end_of_epoch_hook=lambda trainer: False)
    run.trainer.train(num_epochs=3)
    assert called == [1]


def test_a_memory_of_former_batches_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(**arguments: Any) -> Run:
        made = Run(prompt_penalty_weight=1.0, **arguments)
        memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, memory_size=40)
        made.loss = memory
        made.trainer.loss_funcs = {"metric_loss": memory}
        made.trainer.optimizers.pop("metric_loss_optimizer")
        made.trainer.lr_schedulers.pop("metric_loss_scheduler_by_epoch")
        return made

    whole = run()
    whole.trainer.train(num_epochs=3)
    path = tmp_path / "state.pt"
    first = run(checkpoint_path=path)
    first.trainer.train(num_epochs=1)
    assert first.loss.queue_idx == 30
    second = run(checkpoint_path=path)
    second.trainer.load_checkpoint(path)
    assert (second.loss.queue_idx, second.loss.has_been_filled) == (30, False)
    second.trainer.train(num_epochs=3)
    assert second.loss.has_been_filled
    assert_equal(second.state(), whole.state())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_trunk_that_the_trainer_freezes_is_no_other_before_training(tmp_path: Path) -> None:
    """pml takes the gradients of ``freeze_these`` away in train() only."""
    path = tmp_path / "state.pt"
    first = Run(freeze_these=("trunk",), prompt_penalty_weight=0.0, checkpoint_path=path)
    first.trainer.train()
    assert torch.load(path, weights_only=True)["models"]["trunk"]["tensors"] == {}
    second = Run(freeze_these=("trunk",), prompt_penalty_weight=0.0)
    second.trainer.load_checkpoint(path)
    assert_equal(second.state(), first.state())


def test_a_miner_that_the_checkpoint_does_not_know_is_refused(tmp_path: Path) -> None:
    first = Run()
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    second = Run(mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()})
    with pytest.raises(ValueError, match=r"has mining_funcs \[\], the trainer \['tuple_miner'\]; build"):
        second.trainer.load_checkpoint(tmp_path / "state.pt")


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_loss_scaling_steps_all_or_none() -> None:
    """Where the trunk's gradient overflows, the proxies do not go on alone; and not for ever."""
    run = Run(amp_dtype=torch.float16)
    run.trainer.iterations_per_epoch = 50
    run.model.head.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    before = {name: tensor.clone() for name, tensor in run.state().items() if name != "loss.t"}
    with pytest.raises(NonFiniteLossError, match=r"\(step 29\): a gradient is not finite, whatever the loss scale"):
        run.trainer.train()
    assert_equal({name: tensor for name, tensor in run.state().items() if name != "loss.t"}, before)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_loss_scaling_with_an_optimizer_that_gets_no_gradient() -> None:
    """As that of MarginLoss' beta, where the miner finds nothing."""
    run = Run(amp_dtype=torch.float16)
    spare = torch.nn.Linear(2, 2)
    run.trainer.models["embedder"] = torch.nn.Sequential()
    run.trainer.optimizers["embedder_optimizer"] = torch.optim.SGD(spare.parameters(), 0.1)
    # Low enough that no step is left out: those would not ask the optimizers for anything.
    run.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    weights = run.loss.W.detach().clone()
    run.trainer.train()
    assert not torch.equal(run.loss.W, weights)
    assert run.trainer.global_step == 5


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_gradients_that_overflow_now_and_then_do_not_stop_a_run() -> None:
    """Every other of more steps than may be left out one after the other."""
    run = Run(amp_dtype=torch.float16)
    run.trainer.iterations_per_epoch = 32
    run.loss.W.register_hook(lambda gradient: gradient * (math.nan if run.trainer.global_step % 2 else 1.0))
    run.trainer.train()
    assert run.trainer.global_step == 32


def test_the_loss_scale_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = Run(amp_dtype=torch.float16), Run(amp_dtype=torch.float16)
    first.trainer.scaler.load_state_dict({**first.trainer.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 3})
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    second.trainer.load_checkpoint(tmp_path / "state.pt")
    assert second.trainer.scaler.state_dict() == first.trainer.scaler.state_dict()
    assert second.trainer.scaler.get_scale() == 8.0


def test_a_checkpoint_of_other_optimizers_is_refused(tmp_path: Path) -> None:
    first, second = Run(), Run()
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    weights = second.model.trainable_parameters()
    second.trainer.optimizers["trunk_optimizer"] = torch.optim.Adagrad(weights, 0.1)
    with pytest.raises(
        ValueError, match=r"written with the optimizers .*'trunk_optimizer': 'torch.optim.adamw.AdamW'.*Adagrad'"
    ):
        second.trainer.load_checkpoint(tmp_path / "state.pt")


def test_a_checkpoint_from_before_the_kinds_of_optimizers_were_kept_is_read(tmp_path: Path) -> None:
    first, second = Run(), Run()
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["optimizer_classes"]
    torch.save(state, tmp_path / "older.pt")
    second.trainer.load_checkpoint(tmp_path / "older.pt")


def test_parameters_that_an_optimizer_gets_later_are_clipped_and_watched() -> None:
    """Blocks are often let go one after the other."""
    run = Run(clip_value=2.0**-10)
    run.trainer.train(num_epochs=1)
    late = run.model.trunk.blocks[0].mlp.fc1.weight.requires_grad_(True)
    run.trainer.optimizers["trunk_optimizer"].add_param_group({"params": [late], "lr": 1e-6})
    seen: list[float] = []
    run.trainer.end_of_iteration_hook = lambda trainer: seen.append(float(late.grad.abs().max()))
    run.trainer.train(num_epochs=2)
    assert seen
    assert 0 < max(seen) <= 2.0**-10
    before = late.detach().clone()
    late.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteLossError, match="a gradient is not finite"):
        run.trainer.train(num_epochs=3)
    assert torch.equal(late, before)


def test_the_penalty_is_that_of_the_trunk_in_training_now() -> None:
    run, other = Run(lr_schedulers={}), Run()
    with torch.no_grad():
        other.model.trunk.prompt_pool.prompts.mul_(100)
    run.trainer.models["trunk"] = other.model
    run.trainer.optimizers["trunk_optimizer"] = torch.optim.SGD(other.model.trainable_parameters(), 0.0)
    run.trainer.train()
    expected = other.model.prompt_penalty().item()
    assert run.trainer.history[0]["prompt_penalty"] == pytest.approx(expected, rel=1e-4)


def test_what_evaluate_returns_becomes_plain_or_is_named(tmp_path: Path) -> None:
    figures = {
        "r1": np.mean([0.25, 0.5]),
        "test": {"ranks": (torch.tensor(3), np.int64(4)), np.int64(7): np.arange(3.0)},
        "best": np.bool_(True),
    }
    run = Run(evaluate=lambda trainer: figures, checkpoint_path=tmp_path / "state.pt")
    run.trainer.train()
    kept = torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["history"][0]
    assert (kept["r1"], kept["test"], kept["best"]) == (0.375, {"ranks": [3, 4], 7: [0.0, 1.0, 2.0]}, True)
    assert type(kept["r1"]) is float
    for wrong, message in (
        ({"all": {1, 2}}, r"test\.all, which is set: give num"),
        ({(1, 2): 3}, r"test with the key \(1, 2\)"),
    ):
        run = Run(evaluate=lambda trainer, wrong=wrong: {"test": wrong}, checkpoint_path=tmp_path / "other.pt")
        with pytest.raises(TypeError, match=f"evaluate returned {message}"):
            run.trainer.train()


def test_losses_may_come_in_a_module_dict() -> None:
    run = Run()
    trainer = build(
        models={"trunk": run.model},
        loss_funcs=torch.nn.ModuleDict({"metric_loss": run.loss}),
        optimizers=run.optimizers,
    )
    trainer.iterations_per_epoch = 1
    trainer.train()


def test_nothing_is_missed_where_the_trunk_is_an_embedder(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, c_f.LOGGER_NAME)
    build()
    assert "embedder_optimizer" not in caplog.text
    models = {"trunk": puma_plugin.adapt(plain_vit(), adapter_dim=4, pool_size=3), "embedder": EmbeddingHead(16, 8)}
    with pytest.raises(ValueError, match="no optimizer has"):
        build(models=models)
    assert "embedder_optimizer" in caplog.text


def test_a_divergence_can_be_sent_between_processes() -> None:
    error = NonFiniteLossError("diverged", 2, 5, [7, 9])
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.epoch, twin.iteration, twin.item_ids) == ("diverged", 2, 5, [7, 9])


def build(**changes: Any) -> UnifiedTrainer:
    run = Run()
    arguments = {
        "models": {"trunk": run.model},
        "optimizers": run.optimizers,
        "batch_size": 6,
        "loss_funcs": {"metric_loss": run.loss},
        "dataset": run.dataset,
        **changes,
    }
    return UnifiedTrainer(**arguments)


def plain_vit() -> torch.nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"trunk": plain_vit()}}, "not adapted"),
        ({"loss_funcs": {"metric_loss": DistributedLossWrapper(losses.ContrastiveLoss())}}, "GatheredLoss"),
        ({"loss_funcs": {"metric_loss": CurricularFaceLoss(7, 8)}}, "no optimizer has"),
        ({"loss_funcs": {"metric_loss": CurricularFaceLoss(5, 8)}, "freeze_these": ["metric_loss"]}, "num_classes=7"),
        ({"amp_dtype": torch.float64}, "amp_dtype"),
        ({"clip_value": 0}, "clip_value"),
        ({"prompt_penalty_weight": -1}, "prompt_penalty_weight"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"iterations_per_epoch": -2}, "iterations_per_epoch must be at least 1, or None for one pass, got -2"),
        (
            {"models": {"model": plain_vit()}},
            r"must have the key \"trunk\", and may have \"embedder\", got \['model'\]",
        ),
        ({"batch_size": 1000}, "larger than"),
        ({"dataset": Noisy(3, 9, 0)}, "wrap your datasets in UnifiedDataset"),
        ({"dataset": Subset(UnifiedDataset({"a": Noisy(3, 9, 0)}), range(6))}, r"subset\(indices\) in place of"),
    ],
)
def test_errors_at_the_door(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize("name", ["NormalizedSoftmaxLoss", "ProxyNCALoss", "SoftTripleLoss"])
def test_proxy_losses_of_pml_train_whether_or_not_they_keep_the_number_of_classes(name: str) -> None:
    run = Run()
    loss = getattr(losses, name)(run.dataset.num_classes, 8)
    before = [parameter.clone() for parameter in loss.parameters()]
    optimizers = {**run.optimizers, "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1)}
    build(models={"trunk": run.model}, optimizers=optimizers, loss_funcs={"metric_loss": loss}, progress=False).train()
    assert not any(torch.equal(old, new) for old, new in zip(before, loss.parameters(), strict=True))


def test_an_embedder_of_ones_own_is_trained() -> None:
    vit = puma_plugin.adapt(plain_vit(), adapter_dim=4, pool_size=3)
    head = EmbeddingHead(16, 8)
    run = Run()
    optimizers = {
        "trunk_optimizer": torch.optim.SGD(vit.trainable_parameters(), 0.1),
        "embedder_optimizer": torch.optim.SGD(head.parameters(), 0.1),
        "metric_loss_optimizer": run.optimizers["metric_loss_optimizer"],
    }
    before = head.linear.weight.clone()
    models = {"trunk": vit, "embedder": head}
    trainer = UnifiedTrainer(
        models, optimizers, 6, {"metric_loss": run.loss}, run.dataset, dataloader_num_workers=0, progress=False
    )
    trainer.iterations_per_epoch = 1
    trainer.train()
    assert trainer.models["embedder"] is head
    assert not torch.equal(head.linear.weight, before)


def test_one_column_labels_are_refused_where_two_are_needed() -> None:
    dataset = Noisy(3, 12, 0)
    dataset.labels = torch.tensor(dataset.targets)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        build(dataset=dataset)


def test_a_model_without_adapters_trains_with_the_penalty_off() -> None:
    vit = plain_vit()
    run = Run()
    loss = losses.ProxyAnchorLoss(run.dataset.num_classes, 16)
    trainer = UnifiedTrainer(
        {"trunk": vit},
        {
            "trunk_optimizer": torch.optim.SGD(vit.parameters(), 0.01),
            "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.01),
        },
        6,
        {"metric_loss": loss},
        run.dataset,
        prompt_penalty_weight=0,
        dataloader_num_workers=0,
        progress=False,
    )
    trainer.train()
    assert set(trainer.history[0]) == {"epoch", "metric_loss", "total_loss", "seconds"}
    assert isinstance(trainer, trainers.MetricLossOnly)
