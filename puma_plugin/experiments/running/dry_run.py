"""`puma train --dry-run`: the whole run as configured, a few steps of it on random images, and what it will cost."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import Dataset

from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.experiments.data.splits import Splits, load_splits
from puma_plugin.experiments.reporting.terminal import say
from puma_plugin.experiments.running.device import choose_device
from puma_plugin.experiments.running.training import Run
from puma_plugin.experiments.settings.config import DataConfig, TrainConfig
from puma_plugin.utils.paths import full_path

STEPS = 3
# The embedded images are 32 pixels; others are resized from about this.
_USUAL_SIDE = 256


class Size(NamedTuple):
    """How much a distribution trains on."""

    classes: int
    images: int


@dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    Attributes:
        sizes: classes and images by distribution.
        weights: trained weights by what they belong to (adapters, prompts, lora, backbone, head).
        proxies: weights of the loss, not counted among the trained ones.
        total: all weights of the model, frozen ones included.
        batch_size: images per step.
        steps: optimizer steps of the whole run.
        seconds_per_step: mean over the steps after the first, which also warms up.
        memory_gib: peak of the GPU, or of this process where there is none.
        device, precision: what the steps ran on, in words, and in.
        notes: where the dry run differs from the run.
    """

    sizes: Mapping[str, Size]
    weights: Mapping[str, int]
    proxies: int
    total: int
    batch_size: int
    steps: int
    seconds_per_step: float
    memory_gib: float
    device: str
    precision: str
    notes: tuple[str, ...]

    @property
    def trainable(self) -> int:
        """Trained weights of trunk and head."""
        return sum(self.weights.values())

    def text(self) -> str:
        """The findings as lines."""
        classes = sum(size.classes for size in self.sizes.values())
        images = sum(size.images for size in self.sizes.values())
        parts = " + ".join(f"{name} {count:,}" for name, count in self.weights.items())
        share = 100 * self.trainable / self.total
        hours = self.steps * self.seconds_per_step / 3600
        whole = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
        return "\n".join(
            [
                *(f"note: {note}" for note in self.notes),
                f"data: {classes:,} classes, {images:,} images, {len(self.sizes)} distributions",
                f"trained weights: {self.trainable:,} ({parts}), {share:.2f} % of the model's {self.total:,}",
                f"weights of the loss: {self.proxies:,}",
                f"step of {self.batch_size} images: {self.seconds_per_step:.2f} s on {self.device}, "
                f"{self.precision}; peak memory {self.memory_gib:.1f} GiB",
                f"whole run: {self.steps:,} steps, about {whole} without evaluations and the reading of image files",
            ]
        )


class RandomImages(Dataset[Any]):
    """Noise in the place of a distribution's training images, each always the same.

    Args:
        size: classes, and images that they share as evenly as possible.
        seed: of the pixels.
        side: height and width in pixels.
    """

    query_mask: torch.Tensor | None = None
    gallery_mask: torch.Tensor | None = None

    def __init__(self, size: Size, seed: int, side: int = _USUAL_SIDE) -> None:
        self.targets = np.sort(np.arange(size.images) % size.classes)
        self.class_names = [str(index) for index in range(size.classes)]
        self.seed = seed
        self.side = side

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        generator = np.random.default_rng((self.seed, index))
        pixels = generator.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return Image.fromarray(pixels), int(self.targets[index])


def training_sizes(
    config: DataConfig, classes: int | None = None, images: int | None = None
) -> tuple[dict[str, Size], str]:
    """Classes and images to train on, and where the numbers are from, in words.

    Args:
        config: the data; the paper's benchmark may be missing, its counts are published.
        classes, images: in place of the data.

    Raises:
        ValueError: only one of the two is given, there are fewer images than classes, or the data cannot be read.
    """
    if (classes is None) != (images is None):
        raise ValueError("--classes and --images belong together; give both, or none to count the configured data")
    if classes is not None and images is not None:
        if not 2 <= classes <= images:
            raise ValueError(
                f"--classes is {classes} and --images {images}; give two classes or more and an image for each"
            )
        return {"random": Size(classes, images)}, "classes and images as given"
    root = config.root
    if config.kind == "benchmark" and root is not None and not os.path.isdir(full_path(root)):
        sizes = {name: _published(name, config.shots) for name in config.names or CATALOGUE}
        return sizes, f"{root} is no folder, so classes and images are the published counts"
    return {
        name: Size(len(part.class_names), len(part)) for name, part in load_splits(config).train.items()
    }, "classes and images counted in the data"


def _published(name: str, shots: int | None) -> Size:
    classes, images = CATALOGUE[name].train_size
    return Size(classes, images if shots is None else min(images, shots * classes))


class _EnoughError(Exception):
    """The steps are done."""


def dry_run(config: TrainConfig, sizes: Mapping[str, Size], source: str, console: Console) -> DryRun:
    """Build the run with random images of these sizes, do :data:`STEPS` optimizer steps, print and return the findings.

    Everything is the run's own: model, loss with a weight for each class, sampler, augmentation, data loader, optimizer
    and precision. Nothing is written or downloaded.

    Raises:
        ValueError: the method trains nothing, the settings do not work, or a batch does not fit into memory.
    """
    device = choose_device(config.device)
    notes = [source, "images are noise made in memory"]
    if config.model.weights == "pretrained" and config.model.backbone != "embedded":
        notes.append("random weights in place of the pretrained ones; nothing is downloaded")
        config = replace(config, model=replace(config.model, weights="none"))
    if config.precision == "fp16" and device.type == "cpu":
        notes.append("fp32 in place of fp16, which is slow on a CPU")
        config = replace(config, precision="fp32")
    # One model stands for all of them: it does all their steps, with the proxies of all.
    models = len(sizes) if config.model.is_separate else 1
    if models > 1:
        notes.append(f"one model in the place of {models}; the counts of weights are those of all")
    side = 32 if config.data.kind == "embedded" else _USUAL_SIDE
    train = {name: RandomImages(size, seed, side) for seed, (name, size) in enumerate(sizes.items())}
    times = [time.perf_counter()]

    def progress(content: dict[str, Any]) -> None:
        times.append(time.perf_counter())
        say(console, f"step {len(times) - 1} of {STEPS}: {times[-1] - times[-2]:.2f} s")
        if len(times) > STEPS:
            raise _EnoughError

    run = Run(config, Splits(train, {}, train), progress=progress)  # type: ignore[arg-type]
    run.prepare()
    trainer = run.trainer
    if trainer is None:
        raise ValueError(f"model.method is {config.model.method}, which trains nothing; a dry run has nothing to do")
    if run.steps < STEPS:
        raise ValueError(f"the whole run has {run.steps} steps, a dry run takes {STEPS}; raise epochs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times[0] = time.perf_counter()
    with contextlib.suppress(_EnoughError):
        run.train()
    found = DryRun(
        sizes=dict(sizes),
        weights={name: models * count for name, count in _weights(run).items()},
        proxies=sum(weight.numel() for weight in trainer.loss_funcs["metric_loss"].parameters()),
        total=models * sum(weight.numel() for part in (run.trunk, run.embedder) for weight in part.parameters()),
        batch_size=trainer.sampler.batch_size,
        steps=run.steps if models == 1 else _separate_steps(config, sizes),
        seconds_per_step=(times[-1] - times[1]) / (STEPS - 1),
        memory_gib=_peak_memory(device),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
        precision=config.precision,
        notes=tuple(notes),
    )
    say(console, found.text())
    return found


def _separate_steps(config: TrainConfig, sizes: Mapping[str, Size]) -> int:
    """Each model leaves out the rest of its own images that fills no batch."""
    return config.epochs * sum(max(1, size.images // config.global_batch_size) for size in sizes.values())


def _weights(run: Run) -> dict[str, int]:
    """Trained weights by what they belong to, without what there is none of."""
    counts = dict.fromkeys(("adapters", "prompts", "lora", "backbone"), 0)
    for name, weight in run.trunk.named_parameters():
        kind = next((kind for kind in ("adapter", "prompt", "lora_") if kind in name), "backbone")
        place = {"adapter": "adapters", "prompt": "prompts", "lora_": "lora"}.get(kind, kind)
        counts[place] += weight.numel() if weight.requires_grad else 0
    counts["head"] = sum(weight.numel() for weight in run.embedder.parameters())
    return {name: count for name, count in counts.items() if count}


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # In KiB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
