"""The settings of `puma demo` and `puma compare`: dataclasses, filled and checked like those of a single run."""

import os
from dataclasses import dataclass, field
from typing import Any

from puma_plugin.experiments.settings.config import TrainConfig, require


@dataclass
class ComparisonConfig:
    """What every comparison has: a common recipe, learning rates to try, seeds, and where results go.

    Attributes:
        train: what all rows have in common.
        grid: multipliers of the learning rate to try, the same for every row; a single one is taken as it is.
        tuning_seeds: runs of the grid for each rate, each seed that of the training and of the data; their mean
            decides, because one run can be lucky at a rate at which the next one collapses. On the embedded benchmark
            they are judged on its tuning domain, which shares no class with any test; elsewhere on the training classes
            that `train.data.validation_fraction` holds out.
        data_seeds, seeds: data seeds and training seeds; every pair is run.
        separate_seeds: of `seeds`, so many for the separate models, one training per distribution; null for all.
        separate_minimum_steps: optimizer steps that each of the separate models gets at least.
        workers: single-threaded processes; null takes the available cores, at most 2, and on a GPU this process.
        out: folder for results; a second start continues what is there. Results with other settings stay in its
            subfolder jobs, beside the new ones.
    """

    train: TrainConfig
    grid: list[float] = field(default_factory=lambda: [1.0])
    tuning_seeds: list[int] = field(default_factory=lambda: [0, 1])
    data_seeds: list[int] = field(default_factory=lambda: [0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    separate_seeds: int | None = None
    separate_minimum_steps: int = 80
    workers: int | None = None
    out: str = "runs/compare"

    def __post_init__(self) -> None:
        for name in ("grid", "data_seeds", "seeds", "tuning_seeds"):
            values = getattr(self, name)
            require(
                bool(values) and len(set(values)) == len(values),
                f"{name} is {values}; give different values, one or more",
            )
        require(all(value > 0 for value in self.grid), f"grid is {self.grid}; multipliers must be positive")
        require(
            self.train.data.domain == "benchmark",
            "train.data.domain is tuning; leave it at benchmark: the comparison takes the other for its grid by itself",
        )
        require(self.workers is None or self.workers >= 0, f"workers is {self.workers}; give 0 or more, or null")
        require(
            self.separate_seeds is None or self.separate_seeds >= 1,
            f"separate_seeds is {self.separate_seeds}; give 1 or more, or null for all",
        )
        require(
            self.separate_minimum_steps >= 1,
            f"separate_minimum_steps is {self.separate_minimum_steps}; give 1 or more",
        )
        require(bool(self.out), "out is empty; give a folder")
        self.out = os.path.expanduser(self.out)


@dataclass
class DemoConfig(ComparisonConfig):
    """The comparison on the embedded benchmark (`puma demo`); `--all` tries the grid and runs every pair of seeds.

    Attributes:
        rates: method -> multiplier of the learning rate in the short demo; those not given are the recorded full run's.
            `--all` chooses its own.
        map_images: test images in the embedding map.
        queries, neighbours: queries per distribution in the report, and neighbours shown for each.
    """

    rates: dict[str, float] = field(default_factory=dict)
    data_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    map_images: int = 1600
    queries: int = 3
    neighbours: int = 8
    out: str = "runs/demo"

    def __post_init__(self) -> None:
        require(self.train.data.kind == "embedded", "train.data.kind must be embedded: the demo brings its own images")
        super().__post_init__()
        for name, rate in self.rates.items():
            require(rate > 0, f"rates gives {rate} for {name}; multipliers must be positive")
        for name in ("map_images", "queries", "neighbours"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give 1 or more")


@dataclass
class CompareConfig(ComparisonConfig):
    """A grid of runs (`puma compare`): every method with every loss and every combination of other settings.

    Attributes:
        methods: values of `model.method`. `adapters` is without drop here, and so the same as `adaptformer`; with drop
            it is `puma` with `model.pool_size` 0.
        losses: values of `loss.name`; empty for that of `train`. A loss other than that of `train` has its usual
            arguments and miner.
        combine: dotted setting -> values, such as `optimizer.lr: [1e-4, 2e-4]`; every combination is a row.
        ablate: dotted setting -> values; each value is a row of its own, which differs from the others in this only and
            takes their learning rate. Methods for which a setting changes nothing get no rows for it, and a setting
            that changes nothing for all of them is an error. A row that would be the run of another one is left out.
        reference: the method to compare the others with; empty for the first one.
    """

    methods: list[str] = field(default_factory=lambda: ["puma"])
    losses: list[str] = field(default_factory=list)
    combine: dict[str, list[Any]] = field(default_factory=dict)
    ablate: dict[str, list[Any]] = field(default_factory=dict)
    reference: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("methods", "losses"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"{name} is {values}; give each once")
        require(bool(self.methods), "methods is empty; give at least one value of model.method")
        require(
            not self.reference or self.reference in self.methods,
            f"reference is {self.reference!r}; give one of the methods {self.methods}, or leave it out",
        )
        fixed = {"model.method", "loss.name", "seed", "data.seed", "out"}
        for name in (*self.combine, *self.ablate):
            require(name not in fixed, f"{name} is no setting to vary here; use methods, losses, seeds and data_seeds")
        require(
            len(self.grid) == 1 or self.train.data.kind == "embedded" or self.train.data.validation_fraction > 0,
            f"grid is {self.grid}, but no training class is held out to judge the rates by; give "
            "train.data.validation_fraction, such as 0.1, or a single rate",
        )
        data = self.train.data
        drawn = data.kind == "embedded" or data.shuffle_classes or data.shots is not None
        drawn = drawn or data.validation_fraction > 0
        varied = any(name.startswith("data.") for name in (*self.combine, *self.ablate))
        require(
            len(self.data_seeds) == 1 or drawn or varied,
            f"data_seeds is {self.data_seeds}, but nothing of the data is drawn by a seed, so all would be the same "
            "images; give one data seed and several seeds, or set train.data.shuffle_classes or train.data.shots",
        )
        require(
            len(self.grid) == 1 or not self.train.data.shuffle_classes,
            f"grid is {self.grid} with train.data.shuffle_classes, so classes to tune on would be test classes of "
            "another seed; turn one of them off",
        )
