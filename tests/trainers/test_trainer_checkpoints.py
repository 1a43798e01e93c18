"""What a checkpoint of UnifiedTrainer holds and refuses, and that a stopped run continues as if it had not stopped."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners
from small_run import Run, assert_equal, seed_everything, without_seconds
from torch.utils.data import SequentialSampler

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.losses import CurricularFaceLoss
from puma_plugin.models import EmbeddingHead
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.trainers import UnifiedTrainer


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


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # where no step is left
@pytest.mark.parametrize("iterations", [2, 3, 4])
def test_an_epoch_that_goes_on_with_another_length_has_the_mean_of_its_steps(tmp_path: Path, iterations: int) -> None:
    path, steps = tmp_path / "state.pt", []

    def stop(trainer: UnifiedTrainer) -> None:
        steps.append(trainer.losses["total_loss"].item())
        if trainer.global_step == 3:
            trainer.save_checkpoint(path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(iterations_per_epoch=5, end_of_iteration_hook=stop).trainer.train()
    resumed = Run(
        iterations_per_epoch=iterations,
        end_of_iteration_hook=lambda trainer: steps.append(trainer.losses["total_loss"].item()),
    )
    resumed.trainer.load_checkpoint(path)
    resumed.trainer.train()
    assert len(steps) == max(iterations, 3)
    assert resumed.trainer.history[0]["total_loss"] == pytest.approx(sum(steps) / len(steps))


def test_the_seconds_of_an_epoch_that_goes_on_are_those_of_all_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def two_seconds(*arguments: Any) -> None:
        nonlocal now
        now += 2

    def stop(trainer: UnifiedTrainer) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(tmp_path / "state.pt")
            raise KeyboardInterrupt

    first, second = Run(end_of_iteration_hook=stop), Run()
    for run in (first, second):
        run.loss.register_forward_pre_hook(two_seconds)
    with pytest.raises(KeyboardInterrupt):
        first.trainer.train()
    second.trainer.load_checkpoint(tmp_path / "state.pt")
    second.trainer.train()
    assert second.trainer.history[0]["seconds"] == 5 * 2


def test_a_checkpoint_that_could_not_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="checkpoint_path"):
        Run(checkpoint_path=tmp_path / "file" / "state.pt")


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


def other_data(run: Run) -> None:
    run.trainer.dataset = UnifiedDataset(dict(reversed(run.parts.items())))


def other_loss(run: Run) -> None:
    torch.manual_seed(0)
    run.loss = CurricularFaceLoss(8, 8)
    run.trainer.loss_funcs = {"metric_loss": run.loss}
    run.optimizers["metric_loss_optimizer"].param_groups[0]["params"] = list(run.loss.parameters())


def other_groups(run: Run) -> None:
    run.optimizers["trunk_optimizer"].add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})


def other_order(run: Run) -> None:
    run.optimizers["trunk_optimizer"].param_groups[0]["params"].reverse()


def other_state_of_an_optimizer(run: Run) -> None:
    """Told only when it is loaded, after the models were."""

    class Choosy(torch.optim.AdamW):
        def load_state_dict(self, state_dict: Any) -> None:
            if state_dict["state"]:
                raise KeyError("no such moment")
            super().load_state_dict(state_dict)

    Choosy.__module__, Choosy.__qualname__ = torch.optim.AdamW.__module__, "AdamW"
    run.optimizers["trunk_optimizer"].__class__ = Choosy


def part_that_takes_no_state(run: Run) -> None:
    """Nor its own one back."""

    class Stubborn(torch.optim.lr_scheduler.StepLR):
        def load_state_dict(self, state_dict: Any) -> None:
            raise KeyError("never")

    Stubborn.__module__, Stubborn.__qualname__ = torch.optim.lr_scheduler.StepLR.__module__, "StepLR"
    run.trainer.lr_schedulers["metric_loss_scheduler_by_epoch"].__class__ = Stubborn


def other_schedule(run: Run) -> None:
    optimizer = run.optimizers["metric_loss_optimizer"]
    run.trainer.lr_schedulers["metric_loss_scheduler_by_epoch"] = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def other_sampler(run: Run) -> None:
    run.trainer.sampler = MultiDistributionSampler(run.dataset.labels, 6, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_data, "distribution 0 was 'a' .* and is 'b' now"),
        (other_loss, r"loss_funcs\['metric_loss'\]: .* other shape .*\['W: \(8, 7\) instead of \(8, 8\)"),
        (other_groups, r"fit optimizers\['trunk_optimizer'\]: groups of .* parameters instead of"),
        (other_order, r"fit optimizers\['trunk_optimizer'\]: group 0 had 'trunk.* where it has 'trunk"),
        (
            other_state_of_an_optimizer,
            r"state.pt is of other parts than .* \(KeyError: 'no such moment'\)",
        ),
        (part_that_takes_no_state, r"state.pt is of other parts than .* \(KeyError: 'never'\)"),
        (other_schedule, r"written with the lr_schedulers .*StepLR'}, the trainer has .*ExponentialLR'}; build"),
        (other_sampler, r"other labels or settings \(seed was 0, is 1\)"),
    ],
)
def test_a_refusal_leaves_the_trainer_as_it_was(tmp_path: Path, change: Callable[[Run], None], message: str) -> None:
    path = tmp_path / "state.pt"
    Run(checkpoint_path=path).trainer.train()
    refusing, untouched = Run(), Run()
    change(refusing)
    change(untouched)
    with pytest.raises(ValueError, match=message):
        refusing.trainer.load_checkpoint(path)
    for run in (refusing, untouched):
        seed_everything(1)
        run.trainer.train()
    assert_equal(refusing.state(), untouched.state())
    assert without_seconds(refusing.trainer.history) == without_seconds(untouched.trainer.history)
    states = [run.optimizers["metric_loss_optimizer"].state_dict() for run in (refusing, untouched)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


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


def test_names_are_all_the_same_to_a_loss_that_keeps_nothing_of_classes(tmp_path: Path) -> None:
    def run(*names: str) -> Run:
        made = Run()
        made.trainer.loss_funcs = {"metric_loss": losses.ContrastiveLoss()}
        made.trainer.optimizers.pop("metric_loss_optimizer")
        made.trainer.lr_schedulers.pop("metric_loss_scheduler_by_epoch")
        made.trainer.dataset = UnifiedDataset(dict(zip(names, made.parts.values(), strict=True)))
        return made

    run("a", "b").trainer.save_checkpoint(tmp_path / "state.pt")
    run("birds", "cars").trainer.load_checkpoint(tmp_path / "state.pt")


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


def test_a_checkpoint_of_another_kind_of_sampler_is_refused(tmp_path: Path) -> None:
    def run(kind: str) -> Run:
        return Run(sampler=SequentialSampler(range(12)) if kind == "SequentialSampler" else None)

    for written, own in (("SequentialSampler", "MultiDistributionSampler"), ("MultiDistribution", "SequentialSampler")):
        run(written).trainer.save_checkpoint(tmp_path / "state.pt")
        with pytest.raises(ValueError, match=f"checkpoint was written with another sampler than {own}"):
            run(own).trainer.load_checkpoint(tmp_path / "state.pt")


def test_the_loss_scale_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = Run(amp_dtype=torch.float16), Run(amp_dtype=torch.float16)
    first.trainer.scaler.load_state_dict({**first.trainer.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 3})
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    second.trainer.load_checkpoint(tmp_path / "state.pt")
    assert second.trainer.scaler.state_dict() == first.trainer.scaler.state_dict()
    assert second.trainer.scaler.get_scale() == 8.0


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("before", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("after", [None, torch.bfloat16, torch.float16])
def test_a_run_goes_on_in_another_precision(
    tmp_path: Path, before: torch.dtype | None, after: torch.dtype | None
) -> None:
    first, second = Run(amp_dtype=before), Run(amp_dtype=after)
    first.trainer.train()
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    second.trainer.load_checkpoint(tmp_path / "state.pt")
    assert_equal(second.state(), first.state())
    if after is torch.float16:
        kept = first.trainer.scaler.get_scale() if before is torch.float16 else 65536.0
        assert second.trainer.scaler.get_scale() == kept
    second.trainer.train(num_epochs=2)
    assert second.trainer.global_step == 10


def test_a_checkpoint_of_other_optimizers_is_refused(tmp_path: Path) -> None:
    first, second = Run(), Run()
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    weights = second.model.trainable_parameters()
    second.trainer.optimizers["trunk_optimizer"] = torch.optim.Adagrad(weights, 0.1)
    with pytest.raises(
        ValueError, match=r"written with the optimizers .*'trunk_optimizer': 'torch.optim.adamw.AdamW'.*Adagrad'"
    ):
        second.trainer.load_checkpoint(tmp_path / "state.pt")


def test_a_checkpoint_from_before_kinds_and_names_were_kept_is_read(tmp_path: Path) -> None:
    first, second = Run(), Run()
    first.trainer.train()
    first.trainer.save_checkpoint(tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for entry in ("optimizer_classes", "optimizer_parameters", "lr_scheduler_classes", "data_names"):
        del state[entry]
    torch.save(state, tmp_path / "older.pt")
    second.trainer.load_checkpoint(tmp_path / "older.pt")
    assert_equal(second.state(), first.state())


def test_what_evaluate_returns_becomes_plain_or_is_named(tmp_path: Path) -> None:
    figures = {
        "r1": np.mean([0.25, 0.5]),
        "test": {"ranks": (torch.tensor(3), np.int64(4)), np.int64(7): np.arange(3.0)},
        "best": np.bool_(True),
        "margin": torch.tensor([[0.25]]),
        "at": {0.5: None},
    }
    run = Run(evaluate=lambda trainer: figures, checkpoint_path=tmp_path / "state.pt")
    run.trainer.train()
    kept = torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["history"][0]
    assert (kept["r1"], kept["test"], kept["best"]) == (0.375, {"ranks": [3, 4], 7: [0.0, 1.0, 2.0]}, True)
    assert (kept["margin"], kept["at"]) == (0.25, {0.5: None})
    assert type(kept["r1"]) is float
    for wrong, message in (
        ({"all": {1, 2}}, r"test\.all, which is set: give num"),
        ({(1, 2): 3}, r"test with the key \(1, 2\)"),
    ):
        run = Run(evaluate=lambda trainer, wrong=wrong: {"test": wrong}, checkpoint_path=tmp_path / "other.pt")
        with pytest.raises(TypeError, match=f"evaluate returned {message}"):
            run.trainer.train()
    run = Run(evaluate=lambda trainer: [0.5])
    with pytest.raises(TypeError, match="evaluate must return a dict of figures, or None, got list"):
        run.trainer.train()
    run = Run(evaluate=lambda trainer: {"epoch": 3, "r1": 0.5})
    with pytest.raises(
        ValueError, match=r"evaluate returned \['epoch'\], which history has of the training; give other"
    ):
        run.trainer.train()
