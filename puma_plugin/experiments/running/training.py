"""One training run, through the package's own pytorch-metric-learning components."""

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pytorch_metric_learning.utils import common_functions as c_f
from torch import nn
from torch._dynamo import exc as dynamo_errors
from torch.nn.parallel import DistributedDataParallel

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import Embedded, embed
from puma_plugin.evaluation.search import NonFiniteRowsError
from puma_plugin.experiments.contestants.build import build_model, trainable_count
from puma_plugin.experiments.contestants.loss import images_per_class, make_loss, make_miner
from puma_plugin.experiments.contestants.weights import load_weights, save_weights
from puma_plugin.experiments.data.splits import ImageSets, Splits
from puma_plugin.experiments.reporting.summary import flat_scores
from puma_plugin.experiments.running.device import AMP, choose_device
from puma_plugin.experiments.running.inputs import Collate, make_inputs
from puma_plugin.experiments.running.optimizers import make_optimizers, make_schedulers
from puma_plugin.experiments.running.processes import Processes
from puma_plugin.experiments.running.stopping import Stop
from puma_plugin.experiments.settings.config import TrainConfig
from puma_plugin.losses import GatheredLoss
from puma_plugin.models.adapted_vit import AdaptedViT
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.trainers import BatchShare, NonFiniteLossError, UnifiedTrainer

Progress = Callable[[dict[str, Any]], None]
# What the CPU's allocator says, and the stable ABI, through which our operators allocate.
_NO_MEMORY = ("allocate memory", "aoti_torch_empty")


# A process of the data loader that was killed, or found no room for a batch.
_NO_LOADER = re.compile(r"DataLoader worker \(pid|unable to allocate shared memory|unable to write to file </torch_")


class PromptWeights(nn.Module):
    """A trunk's prompt weights in the place of embeddings."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> (B, M)."""
        return cast(AdaptedViT, self.trunk).prompt_weights(images)


class Run:
    """One training run: made ready by the constructor, then :meth:`train`.

    Args:
        config: the settings.
        splits: the images; `validation` may be empty.
        checkpoint: file for the full state after every epoch and every `checkpoint_minutes` (None: no checkpoints). If
            it exists, the run goes on from it.
        progress: called with `step`, `steps`, after an evaluation `validation` (harmonic R@1) and, once the checkpoint
            was loaded, `resumed`.

    Raises:
        ValueError: for settings that cannot work together, or a checkpoint that not all processes find; before any
            training.
    """

    def __init__(
        self, config: TrainConfig, splits: Splits, checkpoint: Path | None = None, progress: Progress | None = None
    ) -> None:
        self.config = config
        self.splits = splits
        self.checkpoint = checkpoint
        self.progress = progress or (lambda content: None)
        self.stops_on_signals = False
        self.processes = Processes.current()
        self.stop = Stop(several=self.processes.world_size > 1, speaks=self.processes.first)
        self.device = choose_device(config.device, self.processes.world_size, self.processes.local_rank)
        self.trunk, self.embedder = build_model(config.model, config.seed, config.data.image_size)
        self.inputs = make_inputs(config, self.trunk, self.processes)
        self.trainable = trainable_count(self.trunk, self.embedder)
        self.history: list[dict[str, Any]] = []
        self.trainer: UnifiedTrainer | None = None
        self.steps = 0
        self._kept_at = 0.0  # when the last checkpoint was written, by the clock of time.monotonic
        self.trunk.to(self.device)
        self.embedder.to(self.device)

    def embed(self, sets: ImageSets, progress: bool = False) -> Embedded:
        """Embeddings, labels and ids of every image of these sets, in order; with a bar of the batches if wanted."""
        dataset = UnifiedDataset(sets, transform=self.inputs.evaluation_transform)
        with self._enough_memory("evaluation_batch_size", len(dataset)):
            return embed(
                nn.Sequential(self.trunk, self.embedder),
                dataset,
                batch_size=self.config.evaluation_batch_size,
                device=self.device,
                num_workers=self.config.data.workers,
                amp_dtype=AMP[self.config.precision],
                collate_fn=Collate(self.inputs.evaluation_batch),
                progress=progress,
            )

    def evaluate(self, sets: ImageSets) -> dict[str, Any]:
        """All retrieval metrics within these sets; where they do not say otherwise, every image is query and gallery.

        Every process embeds its share, the first one searches, all get the result.
        """
        embedded = self.embed(sets)
        return self.processes.from_first(lambda: embedded.evaluate().to_dict())

    def train(self) -> None:
        """Train to the last epoch, from the checkpoint if there is one. Without trainable weights, do nothing.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM, in any of the processes; with ``stops_on_signals`` the checkpoint has
                been written then, within an epoch too, and all processes have stopped after the same step.
        """
        self.prepare()
        if self.trainer is not None:
            if self.config.compile:
                # torch gives up on a function after so many graphs, those of other runs in this process among them.
                torch.compiler.reset()
            listening = self.stop.listening() if self._can_stop() else contextlib.nullcontext()
            with listening, self._compilable(), self._enough_memory("max_batch_per_process", self._share()):
                self._kept_at = time.monotonic()
                self.trainer.train(num_epochs=self.config.epochs)
            if any(self.processes.any(self._is_to_stop())):
                raise KeyboardInterrupt
            self.history = self.trainer.history

    def _can_stop(self) -> bool:
        return self.stops_on_signals and self.checkpoint is not None

    def _is_to_stop(self) -> bool:
        """In this process: a signal may reach the others in different steps, or only one of them."""
        return self._can_stop() and self.stop.asked

    def _is_checkpoint_due(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._kept_at >= 60.0 * minutes

    def prepare(self) -> None:
        """Make the trainer and load the checkpoint, so that what cannot work is known before anything is written."""
        if self.trainer is not None or not self.trainable:
            return
        self.trainer = self._make_trainer()
        if self.checkpoint is not None and self.processes.require_same_file(self.checkpoint, "out"):
            self.trainer.load_checkpoint(self.checkpoint)
            self.progress({"step": self.trainer.global_step, "steps": self.steps, "resumed": True})

    @property
    def seconds(self) -> float:
        """Seconds of training, evaluations left out."""
        return sum(entry["seconds"] for entry in self.history)

    @property
    def validation(self) -> list[dict[str, float]]:
        """R@1 on the held-out training classes over the epochs."""
        return [
            {"epoch": entry["epoch"], **{name: entry[f"validation_{name}"] for name in ("harmonic", "unified")}}
            for entry in self.history
            if "validation_harmonic" in entry
        ]

    def _make_trainer(self) -> UnifiedTrainer:
        config = self.config
        dataset = UnifiedDataset(self.splits.train, transform=self.inputs.train_transform)
        batch_size = self._batch_size(len(dataset))
        try:
            sampler = MultiDistributionSampler(
                dataset.labels,
                batch_size,
                images_per_class(config.loss),
                balance="proportional" if config.sampling == "proportional" else "uniform",
                seed=config.seed,
                distribution_names=dataset.distribution_names,
                class_names=dataset.class_names,
            )
        except ValueError as error:
            raise ValueError(
                f"{error} (of the settings, m is loss.images_per_class, batch_size global_batch_size, balance sampling)"
            ) from error
        self.steps = config.epochs * len(sampler)
        loss = make_loss(config.loss, dataset.num_classes, config.model.embedding_size).to(self.device)
        # Wrapped in one process too, so that a checkpoint can be continued by any number of them.
        loss = GatheredLoss(loss, make_miner(config.loss))
        optimizers = make_optimizers(self.trunk, self.embedder, loss, config.optimizer)
        # pytorch-metric-learning warns about a trunk without an optimizer; with a linear head that is the point.
        logging.getLogger(c_f.LOGGER_NAME).setLevel(logging.ERROR)
        return UnifiedTrainer(
            models=self._trained_models(),
            optimizers=optimizers,
            batch_size=batch_size,
            loss_funcs={"metric_loss": loss},
            dataset=dataset,
            sampler=sampler,
            data_and_label_getter=self._transform_batch,
            lr_schedulers=make_schedulers(optimizers, config.optimizer, len(sampler), self.steps),
            freeze_these=("trunk",) if config.model.method == "linear" else (),
            dataloader_num_workers=config.data.workers,
            data_device=self.device,
            end_of_iteration_hook=self._report_step,
            amp_dtype=AMP[config.precision],
            clip_value=config.optimizer.clip,
            prompt_penalty_weight=1.0 if config.model.has_pool else 0.0,
            seed=config.seed,
            # Transforms of a whole batch draw for the batch of all processes instead.
            seed_items=self.inputs.train_batch is None,
            checkpoint_path=self.checkpoint,
            evaluate=self._report_epoch,
            evaluate_every=config.validate_every,
            progress=False,
        )

    def _share(self) -> int:
        """Images of a batch that this process sees."""
        return self._batch_size(sum(len(part) for part in self.splits.train.values())) // self.processes.world_size

    def _batch_size(self, images: int) -> int:
        """Images of all processes per step: the setting; for a separate model of fewer images, all of them."""
        config, world, names = self.config, self.processes.world_size, ", ".join(self.splits.train)
        size, m = config.global_batch_size, images_per_class(config.loss) or 1
        if size > images and not config.model.is_separate:
            raise ValueError(
                f"global_batch_size is {size}, but there are {images} training images ({names}); set it to "
                f"{max(images - images % math.lcm(m, world), 1)} or less, or give more images"
            )
        if size > images:
            size = max(images - images % m, m)
        if size % world:
            raise ValueError(
                f"a batch of {size} images (global_batch_size {config.global_batch_size}, {images} training images of "
                f"{names}) cannot be shared equally by {world} processes; set global_batch_size to "
                f"{max(size - size % world, world)}"
            )
        return size

    def _trained_models(self) -> dict[str, nn.Module]:
        """Trunk and embedder as the trainer gets them: for this process' share, gradients averaged over all."""
        processes = self.processes
        share = BatchShare(
            self.trunk,
            self.config.max_batch_per_process,
            rank=processes.rank,
            world_size=processes.world_size,
            compiled=self.config.compile,
        )
        models: dict[str, nn.Module] = {"trunk": share, "embedder": self.embedder}
        if processes.world_size == 1:
            return models
        return {
            name: DistributedDataParallel(model) if trainable_count(model) else model for name, model in models.items()
        }

    def _transform_batch(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """In this process and not in the loader's workers, so that the draws do not depend on their number."""
        images, labels = batch
        return (images if self.inputs.train_batch is None else self.inputs.train_batch(images)), labels

    @contextlib.contextmanager
    def _enough_memory(self, setting: str, images: int) -> Iterator[None]:
        """Turns an allocation that failed, here or in a process that reads images, into advice.

        Raises:
            ValueError: naming the setting to lower.
        """
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            text = str(error)
            if ended := next((line.strip() for line in text.splitlines() if _NO_LOADER.search(line)), ""):
                raise ValueError(
                    f"a process that reads images ended ({ended[:200]}); if memory was short, "
                    "set data.workers to fewer, or to 0; processes pass images on through /dev/shm, which is small in "
                    "containers (docker run --shm-size 8g)"
                ) from error
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
                sign in text for sign in _NO_MEMORY
            ):
                raise
            now = min(getattr(self.config, setting) or images, images)
            raise ValueError(
                f"{now} images at once do not fit into the memory of {self.device} "
                f"({text.strip().splitlines()[0][:200]}); set {setting} to {max(now // 2, 1)} or less, which "
                "changes the time but not the result"
            ) from error

    @contextlib.contextmanager
    def _compilable(self) -> Iterator[None]:
        """Turns a failure of torch.compile, which comes with the first step, into advice.

        Raises:
            ValueError: naming the setting, and the cause.
        """
        try:
            yield
        except RuntimeError as error:
            if not self.config.compile or not isinstance(error, dynamo_errors.TorchDynamoException):
                raise
            cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(
                f"compile is true, but torch.compile could not compile the network ({cause[:300]}); install what it "
                "lacks, or set compile to false"
            ) from error

    def _report_step(self, trainer: UnifiedTrainer) -> None:
        self.progress({"step": trainer.global_step, "steps": self.steps})
        if self.checkpoint is None:
            return
        if trainer.iteration == 0:  # behind the checkpoint of the epoch before
            self._kept_at = time.monotonic()
        stops, is_due = self.processes.any(self._is_to_stop(), self._is_checkpoint_due())
        if stops or is_due:
            trainer.save_checkpoint(self.checkpoint)
            self._kept_at = time.monotonic()
        if stops:
            raise KeyboardInterrupt

    def _report_epoch(self, trainer: UnifiedTrainer) -> dict[str, float]:
        """R@1 on the held-out training classes, for the history and the display; nothing where no class is held out.

        Raises:
            NonFiniteLossError: the last step's weights have no embeddings any more.
        """
        if not self.splits.validation:
            return {}
        try:
            scores = flat_scores(self.evaluate(self.splits.validation))
        except NonFiniteRowsError as error:
            raise NonFiniteLossError(
                f"training diverged in epoch {trainer.epoch} (step {trainer.global_step}), evaluated on held-out "
                f"training classes: {error}. {NonFiniteLossError.ADVICE}.",
                trainer.epoch,
                trainer.iteration,
                [],
            ) from error
        self.progress({"step": trainer.global_step, "steps": self.steps, "validation": scores["harmonic"]})
        return {"validation_harmonic": scores["harmonic"], "validation_unified": scores["unified"]}

    def prompt_weights(self, sets: ImageSets) -> np.ndarray | None:
        """Mean weight of each prompt per distribution (distributions, M); None for a model without prompts."""
        if not self.config.model.has_pool:
            return None
        rows = []
        for name, images in sets.items():
            dataset = UnifiedDataset({name: images}, transform=self.inputs.evaluation_transform)
            found = embed(
                PromptWeights(self.trunk),
                dataset,
                batch_size=self.config.evaluation_batch_size,
                device=self.device,
                num_workers=self.config.data.workers,
                collate_fn=Collate(self.inputs.evaluation_batch),
            )
            rows.append(found.embeddings.mean(dim=0).numpy())
        return np.stack(rows)

    def save_model(self, path: Path) -> None:
        """Write the trained weights; see :func:`puma_plugin.experiments.contestants.weights.save_weights`."""
        save_weights(self.config.model, self.trunk, self.embedder, path)

    def load_model(self, path: Path) -> None:
        """Read what :meth:`save_model` wrote for the same model configuration."""
        load_weights(self.config.model, self.trunk, self.embedder, path)
