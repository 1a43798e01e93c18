"""Which models, losses, optimizers and datasets UnifiedTrainer takes, and what it says of others."""

import logging
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, trainers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from small_run import Noisy, Run, build, plain_vit
from torch.utils.data import Subset

import puma_plugin
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.losses import CurricularFaceLoss, GatheredLoss
from puma_plugin.models import EmbeddingHead
from puma_plugin.regularizers import PromptPenalty
from puma_plugin.trainers import UnifiedTrainer
from puma_plugin.trainers.parts import check_proxies, check_shared


def test_losses_may_come_in_a_module_dict() -> None:
    run = Run()
    trainer = build(
        models={"trunk": run.model},
        loss_funcs=torch.nn.ModuleDict({"metric_loss": run.loss}),
        optimizers=run.optimizers,
        dataloader_num_workers=0,
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
    build(
        models={"trunk": run.model}, optimizers=optimizers, loss_funcs={"metric_loss": loss},
        dataloader_num_workers=0, progress=False,
    ).train()  # fmt: skip
    assert not any(torch.equal(old, new) for old, new in zip(before, loss.parameters(), strict=True))


def test_the_distributions_can_be_learned_instead_of_the_classes() -> None:
    def run(proxies: int, level: Any) -> Run:
        made, loss = Run(), losses.ArcFaceLoss(proxies, 8)
        optimizers = {**made.optimizers, "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1)}
        made.trainer = build(
            models={"trunk": made.model}, optimizers=optimizers, loss_funcs={"metric_loss": loss},
            label_hierarchy_level=level, dataloader_num_workers=0, progress=False,
        )  # fmt: skip
        return made

    seen: list[int] = []
    made = run(proxies=2, level=1)
    made.trainer.loss_funcs["metric_loss"].register_forward_pre_hook(lambda loss, inputs: seen.extend(inputs[1]))
    made.trainer.train()
    assert set(map(int, seen)) == {0, 1}
    with pytest.raises(ValueError, match=r"1 proxies, but .* 2 labels of label_hierarchy_level=1: set num_classes=2"):
        run(proxies=1, level=1)
    with pytest.raises(ValueError, match="2 proxies, but the dataset has 7 classes: set num_classes=7"):
        run(proxies=2, level=0)


@pytest.mark.parametrize("level", ["all", [0, 1], 2])
def test_what_a_loss_makes_of_several_levels_is_its_own_business(level: Any) -> None:
    made, loss = Run(), CurricularFaceLoss(2, 8)
    optimizers = {**made.optimizers, "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1)}
    build(
        models={"trunk": made.model}, optimizers=optimizers, loss_funcs={"metric_loss": loss},
        label_hierarchy_level=level,
    )  # fmt: skip


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


def test_among_several_processes_a_loss_that_stays_frozen_needs_no_wrapper() -> None:
    loss = {"metric_loss": losses.ArcFaceLoss(3, 8)}
    check_shared({}, loss, {"metric_loss"}, 2)
    with pytest.raises(ValueError, match="each of 2 processes would train its own W: use puma"):
        check_shared({}, loss, set(), 2)


def test_among_several_processes_who_puts_hooks_on_gradients_shares_them() -> None:
    for hook in ("register_hook", "register_post_accumulate_grad_hook"):
        models = {"trunk": torch.nn.Linear(2, 2)}
        with pytest.raises(ValueError, match=r"models\['trunk'\] is trained by 2 .* its own weight: wrap it"):
            check_shared(models, {}, set(), 2)
        for parameter in models["trunk"].parameters():
            getattr(parameter, hook)(lambda gradient: None)
        check_shared(models, {}, set(), 2)


@pytest.mark.parametrize("labels", [None, [[0, 1], [1, 2]], torch.tensor([0, 1])])
def test_labels_that_cannot_be_counted_are_left_to_the_loss(labels: Any) -> None:
    check_proxies(losses.ArcFaceLoss(1, 8), SimpleNamespace(labels=labels), 1)


def test_too_few_proxies_are_found_inside_of_a_gathered_loss_too() -> None:
    run = Run()
    loss = GatheredLoss(CurricularFaceLoss(5, 8))
    optimizers = {**run.optimizers, "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1)}
    with pytest.raises(ValueError, match="the loss has 5 proxies, but the dataset has 7 classes: set num_classes=7"):
        build(models={"trunk": run.model}, optimizers=optimizers, loss_funcs={"metric_loss": loss})


def test_a_parameter_in_several_optimizers_is_refused() -> None:
    run = Run()
    both = [*run.model.trainable_parameters(), *run.loss.parameters()]
    optimizers = {**run.optimizers, "trunk_optimizer": torch.optim.SGD(both, 0.1)}
    with pytest.raises(ValueError, match="1 parameters are in several optimizers, each of which would move them"):
        build(models={"trunk": run.model}, optimizers=optimizers, loss_funcs={"metric_loss": run.loss})


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_what_an_earlier_trainer_froze_is_not_taken_for_trained() -> None:
    """pml takes the gradients of ``freeze_these`` away and does not give them back."""

    def next_phase(**arguments: Any) -> UnifiedTrainer:
        return UnifiedTrainer(
            {"trunk": run.model}, run.optimizers, 6, {"metric_loss": run.loss}, run.dataset,
            dataloader_num_workers=0, progress=False, **arguments,
        )  # fmt: skip

    run = Run(freeze_these=("trunk",), prompt_penalty_weight=0.0)
    adapter = run.model.trunk.adapters()[0].up
    adapter_before, frozen = adapter.detach().clone(), [p for p in run.model.parameters() if not p.requires_grad]
    run.trainer.train()
    with pytest.warns(UserWarning, match=r"'trunk_optimizer'\] moves nothing as long as none of its parameters takes"):
        next_phase()
    next_phase(freeze_these=("trunk",), prompt_penalty_weight=0.0).train()
    assert torch.equal(adapter, adapter_before)
    for group in run.optimizers["trunk_optimizer"].param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_()
    next_phase().train()
    assert not torch.equal(adapter, adapter_before)
    assert not any(p.requires_grad for p in frozen)


def test_a_prompt_penalty_that_would_come_twice_is_refused() -> None:
    run = Run()
    loss = CurricularFaceLoss(7, 8, embedding_regularizer=PromptPenalty(run.model))
    changes: dict[str, Any] = {
        "models": {"trunk": run.model},
        "loss_funcs": {"metric_loss": loss},
        "optimizers": {**run.optimizers, "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1)},
    }
    with pytest.raises(ValueError, match=r"loss_funcs\['metric_loss'\] has a PromptPenalty, .*_penalty_weight=0"):
        build(**changes)
    build(**changes, prompt_penalty_weight=0)
    build(**changes, loss_weights={"metric_loss": 1, "prompt_penalty": 0})
    # Of another model it comes once.
    loss.embedding_regularizer = PromptPenalty(Run().model)
    build(**changes)


class WithoutGradient(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.inner(images)


def test_adapters_that_no_gradient_reaches_are_said_once(recwarn: pytest.WarningsRecorder) -> None:
    trunk = WithoutGradient(puma_plugin.adapt(plain_vit(), adapter_dim=4, pool_size=3))
    head = EmbeddingHead(16, 8)
    optimizers = {
        "trunk_optimizer": torch.optim.SGD(trunk.inner.param_groups()),  # type: ignore[operator]
        "embedder_optimizer": torch.optim.SGD(head.parameters(), 0.1),
    }
    loss = {"metric_loss": losses.ContrastiveLoss()}
    build(models={"trunk": trunk, "embedder": head}, optimizers=optimizers, loss_funcs=loss).train()
    said = [str(warning.message) for warning in recwarn if "no gradient" in str(warning.message)]
    assert len(said) == 1
    assert "reached the adapters of models['trunk'] in the first step" in said[0]  # the penalty does reach the prompts


class AlwaysEvaluating(torch.nn.Module):
    """As BLIP-2's ``disabled_train``."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> "AlwaysEvaluating":
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images)


def test_a_train_that_does_not_reach_the_adapters_is_refused() -> None:
    trunk = AlwaysEvaluating(puma_plugin.adapt(plain_vit().eval(), adapter_dim=4, pool_size=3))
    head = EmbeddingHead(16, 8)
    optimizers = {
        "trunk_optimizer": torch.optim.SGD(trunk.inner.param_groups()),  # type: ignore[operator]
        "embedder_optimizer": torch.optim.SGD(head.parameters(), 0.1),
    }
    loss = {"metric_loss": losses.ContrastiveLoss()}
    trainer = build(models={"trunk": trunk, "embedder": head}, optimizers=optimizers, loss_funcs=loss)
    with pytest.raises(ValueError, match=r"train\(\) of this AlwaysEvaluating leaves its adapters in evaluation mode"):
        trainer.train()
    # Frozen adapters, as of a teacher, need no gates, nor do those without a drop.
    for adapter in trunk.inner.adapters():  # type: ignore[operator]
        adapter.drop = 0.0
    trainer.train()


def test_optimizers_that_are_to_move_nothing_or_a_part_are_no_mistake() -> None:
    """Those of a part that stays frozen, those that get their parameters later, and those with some for later."""
    run = Run()
    run.model.requires_grad_(False)
    later = torch.optim.SGD([{"params": []}], 0.1)
    run.optimizers["metric_loss_optimizer"].add_param_group({"params": [torch.zeros(2)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(
            models={"trunk": run.model}, optimizers={**run.optimizers, "embedder_optimizer": later},
            loss_funcs={"metric_loss": run.loss}, freeze_these=("trunk",), prompt_penalty_weight=0.0,
        )  # fmt: skip
