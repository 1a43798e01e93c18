"""UnifiedTrainer: what it adds to pml's trainer."""

import math
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.samplers import HierarchicalSampler, MPerClassSampler
from small_run import Run, assert_equal, build, plain_vit, seed_everything
from torch.utils.data import BatchSampler, Sampler, SequentialSampler

from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.trainers import NonFiniteLossError, UnifiedTrainer


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


def test_weights_given_to_one_trainer_can_be_given_to_the_next() -> None:
    weights = {"metric_loss": 3.0}
    for penalty, expected in (
        (0.5, {"metric_loss": 3.0, "prompt_penalty": 0.5}),
        (2.0, {"metric_loss": 3.0, "prompt_penalty": 2.0}),
        (0.0, {"metric_loss": 3.0}),
    ):
        assert Run(loss_weights=weights, prompt_penalty_weight=penalty).trainer.loss_weights == expected
        assert weights == {"metric_loss": 3.0}


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


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ends_before_the_loss(dtype: torch.dtype) -> None:
    run = Run()
    embedder, seen = torch.nn.Linear(8, 8), []
    embedder.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run.loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    optimizers = {**run.optimizers, "embedder_optimizer": torch.optim.SGD(embedder.parameters(), 0.1)}
    trainer = build(
        models={"trunk": run.model, "embedder": embedder}, loss_funcs={"metric_loss": run.loss}, optimizers=optimizers,
        amp_dtype=dtype, iterations_per_epoch=1, dataloader_num_workers=0, progress=False,
    )  # fmt: skip
    trainer.train()
    assert seen == [dtype, torch.float32]


def test_the_optimizer_of_a_frozen_part_moves_nothing_else_either() -> None:
    """As in pml."""
    run = Run()
    both = torch.optim.SGD([*run.model.trainable_parameters(), *run.loss.parameters()], 0.1)
    proxies = run.loss.W.detach().clone()
    build(
        models={"trunk": run.model}, loss_funcs={"metric_loss": run.loss}, optimizers={"trunk_optimizer": both},
        freeze_these=("trunk",), prompt_penalty_weight=0.0, dataloader_num_workers=0, progress=False,
    ).train()  # fmt: skip
    assert torch.equal(run.loss.W, proxies)


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


@pytest.mark.parametrize("iterations", [None, 0])
def test_no_number_of_iterations_means_one_pass(iterations: int | None) -> None:
    run = Run(iterations_per_epoch=iterations)
    run.trainer.train(num_epochs=2)
    assert run.trainer.global_step == 2 * 5


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
    # It cannot begin in the middle: a pass that was left is not begun a second time.
    run = Run(sampler=Sampler(run.dataset), iterations_per_epoch=2)
    for number in (1, 2, 3):
        run.trainer.train(num_epochs=number)
    assert epochs[3:] == [0, 1, 2]


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


def test_batches_of_a_sampler_of_single_items_are_known_and_their_items_seeded() -> None:
    def run(**arguments: Any) -> tuple[list[list[int]], list[float]]:
        images: list[float] = []
        made = Run(
            sampler=SequentialSampler(range(14)), seed_items=True,
            data_and_label_getter=lambda batch: (images.append(batch[0].sum().item()), batch)[1], **arguments,
        )  # fmt: skip
        batches: list[list[int]] = []
        made.trainer.end_of_iteration_hook = lambda trainer: batches.append(trainer.batch_positions)
        made.trainer.train(num_epochs=2)
        return batches, images

    batches, images = run()
    assert batches == 2 * [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]  # two are left over
    assert len(set(images)) == 4
    assert run(dataloader_num_workers=1) == (batches, images)


def test_a_sampler_without_a_whole_batch_is_refused() -> None:
    for sampler, message in (
        (SequentialSampler(range(5)), "SequentialSampler gives 5 items, and batch_size is 6: lower the batch"),
        (BatchSampler(range(5), 6, drop_last=True), "BatchSampler gives no batch: lower the batch size, or give more"),
    ):
        for iterations in (None, 3):
            run = Run(sampler=sampler, iterations_per_epoch=iterations)
            with pytest.raises(ValueError, match=message):
                run.trainer.train()
            assert run.trainer.history == []


def test_a_sampler_that_can_be_gone_through_only_once_is_refused() -> None:
    class Once(Sampler[int]):
        def __init__(self) -> None:
            self.left = iter(range(12))

        def __iter__(self) -> Iterator[int]:
            return self.left

        def __len__(self) -> int:
            return 12

    run = Run(sampler=Once())
    with pytest.raises(ValueError, match="Once gave no batch in pass 1, although its length is 12: it must begin anew"):
        run.trainer.train(num_epochs=2)
    assert run.trainer.global_step == 2


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


def test_a_loss_that_is_infinite_stops_too_and_no_checkpoint_is_promised_that_was_never_written(tmp_path: Path) -> None:
    run = Run(checkpoint_path=tmp_path / "state.pt")
    run.loss.register_forward_hook(lambda module, inputs, output: output * math.inf)
    with pytest.raises(NonFiniteLossError, match="metric_loss is inf") as caught:
        run.trainer.train()
    assert "is kept" not in str(caught.value)


def test_an_epoch_that_was_broken_off_can_begin_anew() -> None:
    steps: list[float] = []

    def stop_once(trainer: UnifiedTrainer) -> None:
        steps.append(trainer.losses["total_loss"].item())
        if len(steps) == 3:
            raise KeyboardInterrupt

    run = Run(end_of_iteration_hook=stop_once)
    with pytest.raises(KeyboardInterrupt):
        run.trainer.train()
    run.trainer.train(start_epoch=1)
    assert len(steps) == 3 + 5
    assert run.trainer.history[0]["total_loss"] == pytest.approx(sum(steps[3:]) / 5)


def test_batches_go_to_where_the_trunk_is() -> None:
    trunk = plain_vit().to("meta")
    assert build(models={"trunk": trunk}, freeze_these=["trunk"], prompt_penalty_weight=0).data_device.type == "meta"


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    run = Run()
    run.trainer.iterations_per_epoch = 1
    run.loss.W.register_hook(lambda gradient: gradient * math.inf)
    before = {name: tensor.clone() for name, tensor in run.state().items() if name != "loss.t"}
    with pytest.raises(NonFiniteLossError, match="gradient"):
        run.trainer.train()
    after = {name: tensor for name, tensor in run.state().items() if name != "loss.t"}
    assert_equal(before, after)


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
    """More of them than may be left out one after the other."""
    run = Run(amp_dtype=torch.float16)
    run.trainer.iterations_per_epoch = 64
    run.loss.W.register_hook(lambda gradient: gradient * (math.nan if run.trainer.global_step % 2 else 1.0))
    run.trainer.train()
    assert run.trainer.global_step == 64


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


def test_a_divergence_can_be_sent_between_processes() -> None:
    error = NonFiniteLossError("diverged", 2, 5, [7, 9])
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.epoch, twin.iteration, twin.item_ids) == ("diverged", 2, 5, [7, 9])


def test_a_test_in_the_iteration_hook_does_not_end_the_training_of_adapters() -> None:
    """pml's testers leave models in evaluation mode, in which no gates are drawn."""
    modes = []

    def hook(trainer: UnifiedTrainer) -> None:
        modes.append([adapter.training for adapter in run.model.trunk.adapters()])
        if trainer.iteration == 1:
            run.model.eval()
        if trainer.iteration == 2:
            run.model.trunk.eval()
        if trainer.iteration == 3:
            run.model.head.eval()

    run = Run(end_of_iteration_hook=hook)
    run.trainer.train()
    assert modes == [[True] * 4] * len(modes)
    assert len(modes) > 4
    # What is put into evaluation mode by itself is meant to be.
    assert not run.model.head.training
