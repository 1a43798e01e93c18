"""One cell of the comparison: a method on one data seed and one training seed. Its result is a file that is kept."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import puma_plugin
from puma_plugin.datasets.embedded.backbone import WEIGHTS
from puma_plugin.experiments.contestants.methods import Method, multiplier_text
from puma_plugin.experiments.data.identity import file_digest
from puma_plugin.experiments.data.splits import Splits, load_splits
from puma_plugin.experiments.running.pool import Progress
from puma_plugin.experiments.running.record import run_record
from puma_plugin.experiments.running.separate import AnyRun, make_run
from puma_plugin.experiments.settings.config import TrainConfig
from puma_plugin.experiments.settings.results import JOBS
from puma_plugin.experiments.settings.unused import WITHOUT_EFFECT, used_settings
from puma_plugin.trainers import NonFiniteLossError
from puma_plugin.utils import atomic_write, json_ready, write_json
from puma_plugin.utils.paths import full_path

_DIGITS = 12  # of the settings' digest in the names of files


@dataclass(frozen=True)
class Job:
    """A method with its seeds.

    Attributes:
        method: the row of the comparison.
        multiplier: of the learning rate.
        purpose: "rate" looks at held-out training classes only, "test" evaluates the test, once, at the end.
        config: the complete configuration of the run.
        minimum_steps: optimizer steps at least (separate models of small distributions).
        folder: where results go.
        keep_model: also keep embeddings, prompt weights and trained weights, for the report.
        data_files: :func:`~puma_plugin.experiments.data.identity.data_digest` of the data.
    """

    method: Method
    multiplier: float
    purpose: Literal["rate", "test"]
    config: TrainConfig
    minimum_steps: int
    folder: str
    keep_model: bool = False
    data_files: str | None = None

    @property
    def key(self) -> str:
        """The job's name among those of its comparison."""
        seeds = f"data{self.config.data.seed}-seed{self.config.seed}"
        rate = f"-x{multiplier_text(self.multiplier)}" if self.purpose == "rate" else ""
        return f"{self.purpose}-{self.method.key}-{seeds}{rate}"

    @property
    def label(self) -> str:
        """What the terminal calls it."""
        rate = f" · rate x{multiplier_text(self.multiplier)}" if self.purpose == "rate" else ""
        return f"{self.method.label} · data {self.config.data.seed} · seed {self.config.seed}{rate}"

    def path(self, suffix: str = ".json") -> Path:
        """Where the job's file with this suffix lies. With other settings it has another name, beside this one."""
        digest = hashlib.sha256(json.dumps(json_ready(self.settings()), sort_keys=True).encode()).hexdigest()
        return Path(self.folder) / JOBS / f"{self.key}-{digest[:_DIGITS]}{suffix}"

    def _of_any_settings(self, ending: str) -> Iterator[Path]:
        """The job's files whose names end like this pattern, whatever its settings were."""
        return (Path(self.folder) / JOBS).glob(f"{self.key}-{'[0-9a-f]' * _DIGITS}{ending}")

    @property
    def checkpoint(self) -> Path:
        """File of the unfinished run."""
        return self.path(".ckpt")

    @property
    def log(self) -> Path:
        """Where the traceback of a failure is kept."""
        return self.path(".log")

    def forget(self) -> None:
        """Remove what is kept of this job, whatever its settings were."""
        for path in self._of_any_settings("*"):
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove checkpoints of a finished job, also those of separate models, and logs of failures.

        The latter of any settings: data files that were mended are others.
        """
        own = self.path("")
        for left in (*own.parent.glob(f"{own.name}*.ckpt"), *self._of_any_settings(".log")):
            left.unlink(missing_ok=True)

    def settings(self) -> dict[str, Any]:
        """Everything the result depends on, and no more; a kept result is used only if this is unchanged."""
        model = self.config.model
        weights = WEIGHTS if model.backbone == "embedded" else Path(full_path(model.weights))
        return {
            "method": self.method.key,
            "multiplier": self.multiplier,
            "purpose": self.purpose,
            "config": used_settings(self.config, apart_from=WITHOUT_EFFECT),
            "minimum_steps": self.minimum_steps if model.is_separate else None,
            "version": puma_plugin.__version__,
            "torch": torch.__version__,
            "backbone": file_digest(weights),
            "data_files": self.data_files,
        }

    def finished(self) -> dict[str, Any] | None:
        """The kept record, if there is one for exactly these settings."""
        try:
            record = json.loads(self.path().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if self.keep_model and not self.path(".npz").exists():
            return None
        # Through JSON, so that tuples and numbers compare as they were written.
        now = json.loads(json.dumps(json_ready(self.settings())))
        return record if record.get("settings") == now else None


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Run one job, keep its record as JSON, and return it."""
    progress({"stage": "images"})
    settings, path = job.settings(), job.path()  # of the weight file as it is now
    splits = load_splits(job.config.data)
    try:
        record = _run(job, splits, progress)
    except NonFiniteLossError as error:
        # A learning rate of the grid that diverges has lost; a test that diverges is an error.
        if job.purpose == "test":
            raise
        record = {"diverged": str(error), "validation": [{"epoch": error.epoch, "harmonic": 0.0, "unified": 0.0}]}
    record = {
        "method": job.method.key,
        "data_seed": job.config.data.seed,
        "seed": job.config.seed,
        "multiplier": job.multiplier,
        "purpose": job.purpose,
        **record,
        "settings": settings,
    }
    write_json(path, record, indent=None)
    job.tidy()
    return record


def _run(job: Job, splits: Splits, progress: Progress) -> dict[str, Any]:
    run = make_run(job.config, splits, job.checkpoint, progress, job.minimum_steps)
    run.train()
    if job.purpose == "rate":
        return run_record(run)
    progress({"step": run.steps, "steps": run.steps, "stage": "test"})
    embedded = run.embed(splits.test)
    record = run_record(run, embedded.evaluate())
    del record["result"]["per_class"]  # many, and what they are for, the intervals, is made
    if job.keep_model:
        _keep(job, run, splits, embedded.embeddings.numpy())
    return record


def _keep(job: Job, run: AnyRun, splits: Splits, embeddings: np.ndarray) -> None:
    arrays: dict[str, Any] = {"embeddings": embeddings.astype(np.float16)}
    weights = run.prompt_weights(splits.test)
    if weights is not None:
        arrays["prompt_weights"] = weights
    with atomic_write(job.path(".npz")) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    if run.trainable:
        run.save_model(job.path(".safetensors"))
