"""pml's MetricLossOnly with what training on several distributions needs."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.samplers import HierarchicalSampler
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm import tqdm

from puma_plugin.models.adapted_vit import find_adapted, require_mode
from puma_plugin.models.adapter import StochasticAdapter
from puma_plugin.regularizers.prompt_penalty import require_adapted
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.trainers.non_finite_loss_error import NonFiniteLossError
from puma_plugin.trainers.own_batches import have_own_batches
from puma_plugin.trainers.parts import check_parts, check_penalty, check_proxies, check_shared, warn_of_unreached
from puma_plugin.trainers.recorded_batches import RecordedBatches
from puma_plugin.trainers.resumable_trainer import ResumableTrainer
from puma_plugin.trainers.seeded_items import SeededItems
from puma_plugin.trainers.training_state import plain_figure, unwrap
from puma_plugin.utils import require_writable
from puma_plugin.utils.distributed import rank, world_size
from puma_plugin.utils.worker_signals import leave_signals_to_the_parent

AMP_TYPES = (None, torch.bfloat16, torch.float16)
# Steps in a row without a finite gradient: GradScaler has then halved its scale, at first 65536, to less than 1e-4.
_MOST_LEFT_OUT = 30


class UnifiedTrainer(ResumableTrainer):
    """MetricLossOnly plus mixed precision, clipping by value, prompt penalty, checkpoints that resume, and NaN alarm.

    Takes what pml's trainers take, and models, losses, miners, reducers and hooks of pml work as there. Differences:
    the sampler's epoch is set; embeddings reach the loss in float32; ``train()`` continues after the last finished
    epoch instead of starting at 1 again; one progress bar per epoch.

    Args:
        models: "trunk" (images to features; adapted, or a UnifiedEmbedder) and optionally "embedder".
        optimizers: as in pml ("trunk_optimizer", "embedder_optimizer", "metric_loss_optimizer").
        batch_size: of all processes together where ``sampler`` is None; of each process where it gives single items, as
            most samplers of pml and torch do; a sampler of batches has its own.
        loss_funcs: {"metric_loss": a pml loss, or a GatheredLoss with several processes}.
        dataset: a UnifiedDataset, or another dataset of (image, label).
        *args, **kwargs: the remaining arguments of pml's BaseTrainer. ``sampler=None`` means
            ``MultiDistributionSampler(dataset.labels, batch_size, seed=seed)``, the paper's plain shuffle.
            ``data_device`` is the trunk's by default. ``loss_weights`` is copied: change ``trainer.loss_weights``.
        amp_dtype: torch.bfloat16 or torch.float16 (with loss scaling) for the models' forward pass; None for float32.
        clip_value: clamp every gradient of the optimizers' parameters to +- this; None for no clamping.
        prompt_penalty_weight: weight of the trunk's ``prompt_penalty()`` in the loss; 0 for trunks without prompts.
        seed: of the default sampler, of the data loader's workers and of ``seed_items``.
        seed_items: let the random transforms of an item follow from seed, pass and item alone, whatever the number of
            processes and workers.
        checkpoint_path: where to keep the full state; written after every ``checkpoint_every``-th epoch and the last,
            behind ``end_of_epoch_hook``. An epoch after which that hook ends the training is the last.
        checkpoint_every: in epochs.
        evaluate: called with the trainer after every ``evaluate_every``-th epoch and the last; a returned dict is
            added to the epoch's entry in ``history`` (numbers, strings, lists and dicts of them, as it goes into the
            checkpoint; arrays and tensors become lists, those with one element numbers).
        evaluate_every: in epochs.
        progress: show the progress bar (rank 0 only).

    Attributes:
        epoch, iteration: of the step in progress; epochs count from 1, iterations from 0.
        global_step: optimizer steps so far.
        history: one dict per finished epoch: "epoch", the mean of each loss, "seconds", and what ``evaluate`` returned.

    Raises:
        ValueError: settings that cannot work, found before any work: a trunk that is not adapted, a loss whose proxies
            no optimizer has, too few proxies for the dataset, labels of one column, a prompt penalty in the loss too,
            pml's DistributedLossWrapper, sharded weights; with several processes, models or proxies whose gradients
            nothing shares among them. In ``train()``: a sampler without a whole batch, or from which several processes
            draw the same items; a model whose ``train()`` does not reach its adapters.
        NonFiniteLossError: while training, NaN or infinity in the loss or a gradient; names step and items.
    """

    data_device: torch.device
    iterations_per_epoch: int
    dataloader_iter: Any
    loss_weights: Any

    def __init__(
        self,
        models: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        batch_size: int,
        loss_funcs: dict[str, nn.Module],
        dataset: Dataset[Any],
        *args: Any,
        amp_dtype: torch.dtype | None = None,
        clip_value: float | None = 1.0,
        prompt_penalty_weight: float = 1.0,
        seed: int = 0,
        seed_items: bool = False,
        checkpoint_path: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        evaluate: Callable[["UnifiedTrainer"], dict[str, Any] | None] | None = None,
        evaluate_every: int = 1,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        self.amp_dtype = amp_dtype
        self.clip_value = clip_value
        self.prompt_penalty_weight = prompt_penalty_weight
        self.seed = seed
        self.seed_items = seed_items
        self.checkpoint_path = checkpoint_path
        self.checkpoint_every = checkpoint_every
        self.evaluate = evaluate
        self.evaluate_every = evaluate_every
        self.progress = progress
        self.batch_positions: list[int] = []
        self._finite, self._left_out = True, 0
        self._begin()
        self._check_settings()
        if not isinstance(models, dict | nn.ModuleDict):
            raise TypeError(f'models must be a dict such as {{"trunk": model}}, got {type(models).__name__}')
        if "trunk" not in models:
            raise ValueError(f'models must have the key "trunk", and may have "embedder", got {sorted(models)}')
        if "embedder" not in models:
            models["embedder"] = nn.Identity()  # as pml does, after a warning
        super().__init__(models, optimizers, batch_size, loss_funcs, dataset, *args, **kwargs)
        self._check_parts()
        self.scaler = torch.amp.GradScaler(self.data_device.type, enabled=amp_dtype is torch.float16)

    def _check_settings(self) -> None:
        if self.checkpoint_path is not None and rank() == 0:
            require_writable(self.checkpoint_path, "checkpoint_path")
        if self.amp_dtype not in AMP_TYPES:
            raise ValueError(f"amp_dtype must be None, torch.bfloat16 or torch.float16, got {self.amp_dtype}")
        if self.clip_value is not None and not self.clip_value > 0:
            raise ValueError(f"clip_value must be > 0, or None for no clipping, got {self.clip_value}")
        if self.prompt_penalty_weight < 0:
            raise ValueError(f"prompt_penalty_weight must not be negative, got {self.prompt_penalty_weight}")
        for name in ("checkpoint_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} counts epochs and must be at least 1, got {getattr(self, name)}")

    @property
    def _trained(self) -> list[nn.Parameter]:
        """The optimizers' parameters as they are now: groups may be added between epochs."""
        return [p for o in self.optimizers.values() for group in o.param_groups for p in group["params"]]

    def custom_setup(self) -> None:
        """Called by pml's constructor before it checks the keys it was given."""
        if self.loss_weights is not None:
            self.loss_weights = dict(self.loss_weights)  # the caller may give the same one to the next trainer
        if self.prompt_penalty_weight > 0:
            require_adapted(self.models["trunk"])
            self.loss_names.append("prompt_penalty")
            if self.loss_weights is not None:
                self.loss_weights.setdefault("prompt_penalty", self.prompt_penalty_weight)
        if self.data_device is None:
            parameter = next(self.models["trunk"].parameters(), None)
            self.data_device = parameter.device if parameter is not None else torch.device("cpu")
        self.data_device = torch.device(self.data_device)
        if self.sampler is None:
            self.sampler = MultiDistributionSampler(_labels(self.dataset), self.batch_size, seed=self.seed)

    def modify_schema(self) -> None:
        # Of an embedder without parameters, such as the one put in above, pml would miss the optimizer.
        if not any(True for _ in self.models["embedder"].parameters()):
            self.schema["optimizers"].important = ["trunk_optimizer"]

    def initialize_loss_weights(self) -> None:
        given = self.loss_weights is not None
        super().initialize_loss_weights()
        if self.prompt_penalty_weight > 0 and not given:
            self.loss_weights["prompt_penalty"] = self.prompt_penalty_weight

    def _check_parts(self) -> None:
        if (self.iterations_per_epoch or 0) < 0:
            raise ValueError(
                f"iterations_per_epoch must be at least 1, or None for one pass, got {self.iterations_per_epoch}"
            )
        check_parts(self.models, self.loss_funcs, self.optimizers, self.freeze_these)
        check_proxies(dict(self.loss_funcs.items()).get("metric_loss"), self.dataset, self.label_hierarchy_level)
        if self.prompt_penalty_weight > 0 and self.loss_weights["prompt_penalty"]:
            check_penalty(self.loss_funcs, self.models["trunk"])
        if world_size() > 1:
            check_shared(self.models, self.loss_funcs, self.freeze_these, world_size())

    def train(self, start_epoch: int | None = None, num_epochs: int = 1) -> None:
        """Train up to and including epoch ``num_epochs``.

        Args:
            start_epoch: default: where a loaded checkpoint or the last call of ``train`` left off, else 1.
            num_epochs: number of the last epoch.
        """
        if start_epoch is not None and (start_epoch, 0) != (self._next_epoch, self._next_iteration):
            self._next_epoch, self._next_iteration = start_epoch, 0
            self._pass, self._consumed, self._sums, self._seconds = start_epoch - 1, 0, {}, 0.0
        self.initialize_dataloader()
        # A sampler that cannot begin in the middle begins anew.
        if self._consumed >= len(self.dataloader) or (self._consumed and not self._can_resume_sampler()):
            self._pass, self._consumed = self._pass + 1, 0
        self._set_loaded_random_state()
        for epoch in range(self._next_epoch, num_epochs + 1):
            self.epoch = epoch
            self._train_epoch(num_epochs)
            evaluated = self._maybe_evaluate(self._is_due(self.evaluate_every, num_epochs))
            stops = self.end_of_epoch_hook(self) is False
            if stops and not evaluated:
                self._maybe_evaluate(True)
            # Behind the hook, which may test, step a scheduler by what it found, and so on.
            if self.checkpoint_path is not None and (stops or self._is_due(self.checkpoint_every, num_epochs)):
                self.save_checkpoint(self.checkpoint_path)
            if stops:
                break

    def _train_epoch(self, last_epoch: int) -> None:
        self.set_to_train()
        started = time.perf_counter() - self._seconds
        steps = range(self._next_iteration, self.iterations_per_epoch)
        bar = tqdm(
            steps,
            desc=f"epoch {self.epoch}/{last_epoch}",
            initial=steps.start,
            total=steps.stop,
            disable=not self.progress or rank() != 0,
        )
        for self.iteration in bar:
            self.forward_and_backward()
            self.global_step += 1
            for name, value in self._values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            bar.set_postfix(loss=f"{self._values['total_loss']:.4f}")
            self.step_lr_schedulers(end_of_epoch=False)
            self._next_iteration = self.iteration + 1
            self._seconds = time.perf_counter() - started
            self._call_iteration_hook()
        self.step_lr_schedulers(end_of_epoch=True)
        self.zero_losses()
        # Of the steps there were: an epoch that was begun may go on with another iterations_per_epoch.
        means = {name: total / self._next_iteration for name, total in self._sums.items()}
        self.history.append({"epoch": self.epoch, **means, "seconds": self._seconds})
        self._next_epoch, self._next_iteration, self._sums, self._seconds = self.epoch + 1, 0, {}, 0.0

    def _call_iteration_hook(self) -> None:
        """A hook that tests leaves models in evaluation mode, in which the rest of the epoch would draw no gates."""
        before = self._in_training()
        self.end_of_iteration_hook(self)
        if any(not module.training for module in before):
            self.set_to_train()

    def _in_training(self) -> list[nn.Module]:
        """Of models and their adapters, those that train. (What else a hook puts into evaluation mode, stays there.)"""
        watched = [unwrap(model) for model in self.models.values()]
        watched += [part for model in watched for part in model.modules() if isinstance(part, StochasticAdapter)]
        return [module for module in watched if module.training]

    def set_to_train(self) -> None:
        """As pml's.

        Raises:
            ValueError: a model's ``train()`` does not reach its adapters.
        """
        super().set_to_train()
        for name, model in self.models.items():
            if name not in self.freeze_these:
                require_mode(model, training=True)

    def _is_due(self, every: int, last_epoch: int) -> bool:
        return self.epoch == last_epoch or self.epoch % every == 0

    def _maybe_evaluate(self, due: bool) -> bool:
        if self.evaluate is not None and due:
            found = self.evaluate(self)
            if found is not None and not isinstance(found, dict):
                raise TypeError(f"evaluate must return a dict of figures, or None, got {type(found).__name__}")
            if taken := sorted(self.history[-1].keys() & (found or {}).keys()):
                raise ValueError(f"evaluate returned {taken}, which history has of the training; give other names")
            self.history[-1].update({name: plain_figure(name, value) for name, value in (found or {}).items()})
        return due

    def initialize_dataloader(self) -> None:
        settings: dict[str, Any] = {
            "num_workers": self.dataloader_num_workers,
            "collate_fn": self.collate_fn,
            "pin_memory": self.data_device.type == "cuda",
            "persistent_workers": self.dataloader_num_workers > 0,
            "worker_init_fn": leave_signals_to_the_parent,
            # Its own generator, so that torch's global one is left alone.
            "generator": torch.Generator(),
        }
        # HierarchicalSampler hands out batches although it is no BatchSampler by type.
        gives_batches = isinstance(self.sampler, BatchSampler | HierarchicalSampler)
        batches = self.sampler if gives_batches else BatchSampler(self.sampler, self.batch_size, drop_last=True)
        if not len(batches):
            number = len(self.sampler)
            given = "no batch" if gives_batches else f"{number} items, and batch_size is {self.batch_size}"
            raise ValueError(f"{type(self.sampler).__name__} gives {given}: lower the batch size, or give more images")
        self._recorded = RecordedBatches(batches, self.batch_size, with_pass=self.seed_items)
        items = SeededItems(self.dataset, self.seed) if self.seed_items else self.dataset
        self.dataloader = DataLoader(items, batch_sampler=self._recorded, **settings)
        if not self.iterations_per_epoch:
            self.iterations_per_epoch = len(self.dataloader)
        self.dataloader_iter = None
        # What this process has drawn, until it is known that no other draws the same.
        self._drawn: list[Any] | None = [] if world_size() > 1 else None

    def get_batch(self) -> tuple[Any, Tensor]:
        if self.dataloader_iter is None:
            self._begin_pass()
        batch = next(self.dataloader_iter, None)
        if batch is None:
            self._pass, self._consumed = self._pass + 1, 0
            self._begin_pass()
            batch = next(self.dataloader_iter, None)
        if batch is None:
            raise ValueError(
                f"{type(self.sampler).__name__} gave no batch in pass {self._pass}, although its length is "
                f"{len(self.sampler)}: it must begin anew each time that it is iterated over"
            )
        self._consumed += 1
        self.batch_positions = self._recorded.pending.popleft()
        if self._drawn is not None:
            self._drawn += self.batch_positions
            if have_own_batches(self._drawn, batch, self.sampler, self.data_device):
                self._drawn = None
        data, labels = self.data_and_label_getter(batch)
        labels = c_f.process_label(labels, self.label_hierarchy_level, self.label_mapper)
        return self.maybe_do_batch_mining(data, labels)

    def _begin_pass(self) -> None:
        """Begin to go through the sampler once more, or continue where a checkpoint left off."""
        if self._can_resume_sampler():
            self.sampler.set_epoch(self._pass, self._consumed)
        elif hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(self._pass)
        seed = np.random.SeedSequence((self.seed, self._pass, rank())).generate_state(1, np.uint64)[0]
        self.dataloader.generator.manual_seed(int(seed >> np.uint64(1)))
        self._recorded.pass_number = self._pass
        self.dataloader_iter = iter(self.dataloader)

    def calculate_loss(self, curr_batch: tuple[Any, Tensor]) -> None:
        data, labels = curr_batch
        with self._autocast():
            embeddings = self.compute_embeddings(data)
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            embeddings = embeddings.float()
        indices_tuple = self.maybe_mine_embeddings(embeddings, labels)
        self.losses["metric_loss"] = self.maybe_get_metric_loss(embeddings, labels, indices_tuple)
        if self.prompt_penalty_weight > 0:
            adapted = find_adapted(self.models["trunk"])
            self.losses["prompt_penalty"] = adapted.prompt_penalty()  # type: ignore[union-attr]  # see custom_setup

    def backward(self) -> None:
        self._values = {name: float(torch.as_tensor(value).detach()) for name, value in self.losses.items()}
        if not math.isfinite(self._values["total_loss"]):
            raise self._diverged(", ".join(f"{name} is {value}" for name, value in self._values.items()))
        self.scaler.scale(self.losses["total_loss"]).backward()

    def clip_gradients(self) -> None:
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        if self.global_step == 0:
            warn_of_unreached(self.models, self.freeze_these)
        gradients = [p.grad for p in self._trained if p.grad is not None]
        self._finite = not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite())
        self._left_out = 0 if self._finite else self._left_out + 1
        # With loss scaling an infinite gradient is expected now and then, until the scale has become smaller.
        if not self._finite and (not self.scaler.is_enabled() or self._left_out == _MOST_LEFT_OUT):
            raise self._diverged(f"a gradient is not finite{', whatever the loss scale' * self.scaler.is_enabled()}")
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self._trained, self.clip_value)
        super().clip_gradients()

    def step_optimizers(self) -> None:
        for key, optimizer in self.optimizers.items():
            if key.removesuffix("_optimizer") in self.freeze_these or not _has_gradients(optimizer):
                continue
            # All or none: with loss scaling, proxies would move on while the trunk's steps are left out.
            if self._finite:
                self.scaler.step(optimizer)
        self.scaler.update()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.data_device.type, dtype=self.amp_dtype)

    def _diverged(self, what: str) -> NonFiniteLossError:
        ids = getattr(self.dataset, "item_ids", None)
        positions = self.batch_positions
        if isinstance(self.sampler, MultiDistributionSampler):
            # Of all processes, not of this one's share.
            positions = self.sampler.global_batch(self._pass, self._consumed - 1).tolist()
        numbers = [int(ids[p]) for p in positions] if ids is not None else list(positions)
        describe = getattr(self.dataset, "describe", str)
        kept = ""
        if self.checkpoint_path is not None and os.path.exists(self.checkpoint_path):
            kept = f" The last good checkpoint is kept: {os.fspath(self.checkpoint_path)}."
        items = ", ".join(describe(n) for n in numbers)
        return NonFiniteLossError(
            f"training diverged in epoch {self.epoch}, iteration {self.iteration} (step {self.global_step}): {what}. "
            f"Items of the batch: {items}.{kept} {NonFiniteLossError.ADVICE}; look at the items if it is always these.",
            self.epoch,
            self.iteration,
            numbers,
        )


def _labels(dataset: Any) -> Any:
    labels = getattr(dataset, "labels", None)
    if labels is None:
        raise ValueError(
            "dataset has no labels (N, 2) to sample from: wrap your datasets in UnifiedDataset({name: dataset, ...}) "
            "(and take its subset(indices) in place of torch's Subset), or pass sampler="
        )
    return labels


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
