"""One fully trained model per distribution, behind the face of a single run."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import Embedded
from puma_plugin.evaluation.result import harmonic_mean
from puma_plugin.experiments.contestants.weights import load_weights, save_weights
from puma_plugin.experiments.data.splits import ImageSets, Splits
from puma_plugin.experiments.running.processes import Processes
from puma_plugin.experiments.running.training import Progress, Run
from puma_plugin.experiments.settings.config import TrainConfig


class SeparateRun:
    """The methods and figures of :class:`~puma_plugin.experiments.running.training.Run` for one model per distribution.

    A distribution of fewer training images than `global_batch_size` has them all in every batch; see
    :func:`small_distributions`. Every distribution is embedded by the model that was trained on it, so embeddings of
    different distributions cannot be compared: the joint figures of an evaluation (unified, leak) mean nothing.

    Args:
        config: the settings, with `model.method` separate.
        splits: the images; of an evaluation only the test.
        checkpoint: as for a Run; each model gets a file of its own beside it, numbered by distribution.
        progress: called as a Run's, with `stage`, the distribution at work.
        minimum_steps: optimizer steps that each model gets at least, in whole epochs, however small its distribution.
    """

    def __init__(
        self,
        config: TrainConfig,
        splits: Splits,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        minimum_steps: int = 1,
    ) -> None:
        self.config = config
        self.splits = splits
        self.checkpoint = checkpoint
        self.progress = progress or (lambda content: None)
        self.minimum_steps = minimum_steps
        self.stops_on_signals = False
        self.runs: dict[str, Run] = {}

    def _make(self, name: str, checkpoint: Path | None) -> Run:
        own = self.splits.only(name)
        epochs = self.config.epochs
        if own.train:
            per_epoch = max(1, sum(len(part) for part in own.train.values()) // self.config.global_batch_size)
            epochs = max(epochs, math.ceil(self.minimum_steps / per_epoch))
        config = replace(self.config, epochs=epochs, validate_every=epochs)
        index = self.splits.names.index(name)
        place = {"stage": f"{name} ({index + 1} of {len(self.splits.names)})"}
        return Run(config, own, checkpoint, partial(_with_place, self.progress, place))

    def _run(self, name: str) -> Run:
        """The run of a distribution, made when it is first needed: its random numbers follow from its making."""
        if name not in self.runs:
            index = self.splits.names.index(name)
            checkpoint = None if self.checkpoint is None else self.checkpoint_of(self.checkpoint, index)
            self.runs[name] = self._make(name, checkpoint)
            self.runs[name].stops_on_signals = self.stops_on_signals
        return self.runs[name]

    @staticmethod
    def checkpoint_of(checkpoint: Path, index: int) -> Path:
        """The checkpoint of the index-th distribution."""
        return checkpoint.with_name(f"{checkpoint.stem}-part{index}{checkpoint.suffix}")

    @property
    def processes(self) -> Processes:
        """This process' place among all that train together."""
        return Processes.current()

    def prepare(self) -> None:
        """Try to make every trainer, so that what cannot work is known before anything is written."""
        for name in self.splits.names:
            try:
                self._make(name, None).prepare()
            except ValueError as error:
                raise ValueError(f"the model of {name}: {error}") from error

    def train(self) -> None:
        """Train one model after the other; those with a finished checkpoint are only loaded."""
        for name in self.splits.names:
            self._run(name).train()

    @property
    def trainable(self) -> int:
        """Trained weights of all models together."""
        return sum(run.trainable for run in self.runs.values())

    @property
    def seconds(self) -> float:
        """Seconds of training, evaluations left out."""
        return sum(run.seconds for run in self.runs.values())

    @property
    def steps(self) -> int:
        """Optimizer steps of all models together."""
        return sum(run.steps for run in self.runs.values())

    @property
    def history(self) -> list[dict[str, Any]]:
        """Empty: epochs of different models do not belong together."""
        return []

    @property
    def validation(self) -> list[dict[str, Any]]:
        """Harmonic mean of each model's final R@1 on its held-out training classes; empty without such classes."""
        last = [run.validation[-1]["harmonic"] for run in self.runs.values() if run.validation]
        if not last:
            return []
        return [{"epoch": self.config.epochs, "harmonic": harmonic_mean(last), "unified": None}]

    def embed(self, sets: ImageSets, progress: bool = False) -> Embedded:
        """Every image of these sets, embedded by its distribution's model."""
        parts = {name: self._run(name).embed({name: images}, progress) for name, images in sets.items()}
        whole = UnifiedDataset(sets)
        return replace(
            next(iter(parts.values())),
            embeddings=torch.cat([part.embeddings for part in parts.values()]),
            labels=torch.as_tensor(whole.labels, dtype=torch.int64),
            item_ids=torch.as_tensor(whole.item_ids, dtype=torch.int64),
            distribution_names=list(whole.distribution_names),
            class_names=list(whole.class_names),
            query_mask=whole.query_mask,
            gallery_mask=whole.gallery_mask,
            local_classes=whole.local_classes,
            recall_ks=whole.recall_ks,
        )

    def prompt_weights(self, sets: ImageSets) -> None:
        """None: fully trained models have no prompts."""
        return

    def _models(self) -> tuple[nn.ModuleDict, nn.ModuleDict]:
        """Trunks and embedders by number: distributions may have names that no module can have."""
        runs = [self._run(name) for name in self.splits.names]
        trunks = {str(index): run.trunk for index, run in enumerate(runs)}
        embedders = {str(index): run.embedder for index, run in enumerate(runs)}
        return nn.ModuleDict(trunks), nn.ModuleDict(embedders)

    def save_model(self, path: Path) -> None:
        """Write all models into one file; see :func:`puma_plugin.experiments.contestants.weights.save_weights`."""
        save_weights(self.config.model, *self._models(), path, {"distributions": self.splits.names})

    def load_model(self, path: Path) -> None:
        """Read what :meth:`save_model` wrote for the same distributions in the same order."""
        load_weights(self.config.model, *self._models(), path, {"distributions": self.splits.names})


def without_joint(result: Mapping[str, Any]) -> dict[str, Any]:
    """`RetrievalResult.to_dict()` without the joint figures, which compare embeddings of different models."""
    joint = ("unified", "unified_per_distribution", "leak", "leak_per_distribution")
    return {**result, **dict.fromkeys(joint)}


def _with_place(progress: Progress, place: dict[str, Any], content: dict[str, Any]) -> None:
    progress({**content, "validation": None, **place})


def small_distributions(config: TrainConfig, splits: Splits) -> list[str]:
    """A sentence for every distribution whose separate model gets smaller batches than `global_batch_size`."""
    if not config.model.is_separate:
        return []
    return [
        f"{name}: {len(images)} training images, fewer than global_batch_size {config.global_batch_size}, so that each "
        "batch of its own model has them all"
        for name, images in splits.train.items()
        if len(images) < config.global_batch_size
    ]


AnyRun = Run | SeparateRun


def make_run(
    config: TrainConfig,
    splits: Splits,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    minimum_steps: int = 1,
) -> AnyRun:
    """The run of a configuration: one model, or one per distribution."""
    if config.model.is_separate:
        return SeparateRun(config, splits, checkpoint, progress, minimum_steps)
    return Run(config, splits, checkpoint, progress)
