"""The comparison of methods: which jobs, in which order, and what comes of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from puma_plugin.experiments.comparing.jobs import Job, run_job
from puma_plugin.experiments.contestants.methods import Method, multiplier_text
from puma_plugin.experiments.data.identity import data_digest
from puma_plugin.experiments.data.splits import Splits, check_readable, load_splits
from puma_plugin.experiments.reporting.machine import available_cores
from puma_plugin.experiments.reporting.terminal import say
from puma_plugin.experiments.running.device import choose_device
from puma_plugin.experiments.running.display import JobDisplay
from puma_plugin.experiments.running.early_checks import check_settings
from puma_plugin.experiments.running.pool import TaskError, run_tasks
from puma_plugin.experiments.running.separate import make_run, small_distributions
from puma_plugin.experiments.settings.comparison_config import ComparisonConfig
from puma_plugin.experiments.settings.config import DataConfig
from puma_plugin.experiments.settings.results import require_no_run
from puma_plugin.utils import atomic_write, folder_lock, remove_unfinished


@contextmanager
def _of_row(method: Method) -> Iterator[None]:
    """What is refused is told with the row's name."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ValueError(f"{method.label}: {error}") from error


@dataclass(frozen=True)
class Outcome:
    """What a comparison found.

    Attributes:
        jobs, records: the tests and their records, in the same order.
        rates: how the learning rates were chosen; None if they were given.
    """

    jobs: list[Job]
    records: list[dict[str, Any]]
    rates: dict[str, Any] | None


class Comparison:
    """Runs jobs in a pool and keeps what is finished.

    Args:
        config: the settings.
        methods: what to run.
        console: where progress is shown.
    """

    def __init__(self, config: ComparisonConfig, methods: Sequence[Method], console: Console) -> None:
        self.config = config
        self.methods = list(methods)
        self.by_key = {method.key: method for method in methods}
        self.console = console
        alone = choose_device(config.train.device).type != "cpu"  # processes would share the GPU's memory
        free = 0 if alone else min(2, available_cores())
        self.workers = free if config.workers is None else config.workers
        self._digests: dict[str, str | None] = {}
        self._checked: set[str] = set()

    def _job(self, method: Method, multiplier: float, data_seed: int, seed: int, **changes: Any) -> Job:
        config = method.configure(self.config.train, multiplier, data_seed, seed)
        if method.key not in self._checked:
            with _of_row(method):
                check_settings(config)
            self._checked.add(method.key)
        return Job(
            method,
            multiplier,
            "test",
            config,
            self.config.separate_minimum_steps,
            self.config.out,
            data_files=self._data_files(config.data),
            **changes,
        )

    def _data_files(self, data: DataConfig) -> str | None:
        """The digest of the data's files as they were when it was first asked for, in all jobs of this comparison."""
        places = (data.kind, data.root, data.folders, data.names, data.manifest, data.few_shot, data.known_bad)
        if repr(places) not in self._digests:
            self._digests[repr(places)] = data_digest(data)
        return self._digests[repr(places)]

    def rate_jobs(self) -> list[Job]:
        """The learning rate grid: every multiplier and tuning seed for every method that has a rate of its own."""
        keys = dict.fromkeys(method.rate_key for method in self.methods if method.trained)
        jobs = []
        for method in (self.by_key[key] for key in keys):
            for multiplier, seed in product(self.config.grid, self._seeds_of(method, self.config.tuning_seeds)):
                job = self._job(method, multiplier, seed, seed)
                data = job.config.data
                if data.kind == "embedded":
                    data = replace(data, domain="tuning", validation_fraction=0.0)
                # Only the last epoch's figure decides, so only that one is computed.
                config = replace(job.config, data=data, validate_every=job.config.epochs)
                jobs.append(replace(job, purpose="rate", config=config))
        return jobs

    def _seeds_of(self, method: Method, seeds: Sequence[int]) -> Sequence[int]:
        if not method.trained:
            return seeds[:1]
        return seeds[: self.config.separate_seeds] if method.separate else seeds

    def test_jobs(
        self, rates: dict[str, float], data_seeds: Sequence[int], seeds: Sequence[int], keep_models: bool = True
    ) -> list[Job]:
        """Every method on every pair of seeds; methods without training once per data seed.

        Args:
            rates: method -> multiplier of the learning rate.
            keep_models: keep weights and embeddings of the first pair of seeds.
        """
        jobs = []
        for data_seed in data_seeds:
            for seed in seeds:
                for method in self.methods:
                    first = data_seed == data_seeds[0] and seed == seeds[0]
                    if seed not in self._seeds_of(method, seeds):
                        continue
                    multiplier = rates[method.rate_key] if method.trained else 1.0
                    keep = keep_models and first and not method.separate
                    jobs.append(self._job(method, multiplier, data_seed, seed, keep_model=keep))
        # The long ones first within a data seed, so that no worker waits for the other at the end.
        return sorted(jobs, key=lambda job: (job.config.data.seed, not job.method.trained))

    def check(self, jobs: Sequence[Job]) -> None:
        """Make one run of every row that is not finished, so that what cannot work is known before any training.

        Images that are read only after a training are opened, unless a run on the same data has begun already.

        Raises:
            ValueError: the row's name, and what its run refuses; or which images cannot be read.
        """
        with self.console.status("checking the settings") as status:
            self._check_rows(jobs)
            self._open_images(jobs, lambda done, images: status.update(f"opening test images: {done:,} of {images:,}"))

    def _open_images(self, jobs: Sequence[Job], progress: Callable[[int, int], None]) -> None:
        begun = {repr(job.config.data) for job in jobs if job.finished() is not None or job.checkpoint.exists()}
        wanted = {repr(job.config.data): job.config.data for job in jobs}
        opened: set[str] = set()
        for key, data in wanted.items():
            if key not in begun and data.kind != "embedded" and data.bad_images == "raise":
                check_readable(load_splits(data), progress, opened)

    def _check_rows(self, jobs: Sequence[Job]) -> None:
        kinds: dict[tuple[str, str], Job] = {}
        for job in jobs:
            if job.finished() is None:
                kinds.setdefault((job.method.key, job.purpose), job)
        splits: dict[str, Splits] = {}
        sentences: dict[str, None] = {}
        for job in kinds.values():
            data = repr(job.config.data)
            if data not in splits:
                splits = {data: load_splits(job.config.data)}  # one at a time in memory
            if job.purpose == "rate" and not splits[data].validation:
                fraction = self.config.train.data.validation_fraction
                raise ValueError(
                    f"train.data.validation_fraction is {fraction}, which holds out two classes of no distribution, so "
                    f"the rates {self.config.grid} cannot be judged; raise it, or give a single rate in grid"
                )
            with _of_row(job.method):
                make_run(job.config, splits[data], minimum_steps=job.minimum_steps).prepare()
            sentences.update(dict.fromkeys(small_distributions(job.config, splits[data])))
        for sentence in sentences:
            say(self.console, sentence)

    def run(
        self,
        rates: dict[str, float],
        data_seeds: Sequence[int],
        seeds: Sequence[int],
        *,
        try_rates: bool,
        keep_models: bool,
        fresh: bool,
    ) -> Outcome:
        """Check everything, then run what is not finished: first the learning rates, with those that won the tests.

        Args:
            rates: method -> multiplier of the learning rate, for methods whose rates are not tried.
            data_seeds, seeds, keep_models: of the tests, see :meth:`test_jobs`.
            try_rates: choose each trained method's rate from the grid.
            fresh: run everything; what is kept of these jobs, with any settings, is removed once the settings are
                checked.

        Raises:
            ValueError: a row that a training run would refuse, before any training; or another comparison is at work in
                the folder, or it is that of a training.
            TaskError: a job failed; says which, and where its traceback lies. Finished ones are kept.
        """
        require_no_run(Path(self.config.out))
        tried = self.rate_jobs() if try_rates else []
        planned = [*tried, *self.test_jobs(rates, data_seeds, seeds, keep_models)]
        self.check(planned)
        with folder_lock(self.config.out):
            for folder in {Path(self.config.out), *(job.path().parent for job in planned)}:
                remove_unfinished(folder)
            if fresh:
                for job in planned:
                    job.forget()
            found = self.choose_rates(self._run(tried, "Learning rates")) if tried else None
            chosen = rates if found is None else {**rates, **found["chosen"]}
            jobs = self.test_jobs(chosen, data_seeds, seeds, keep_models)
            return Outcome(jobs, self._run(jobs, "Training"), found)

    def _run(self, jobs: Sequence[Job], title: str) -> list[dict[str, Any]]:
        """The jobs' records, in order: kept ones are read, the others run."""
        kept = {job.key: record for job in jobs if (record := job.finished()) is not None}
        waiting = [job for job in jobs if job.key not in kept]
        for job in jobs:
            if job.key in kept:
                job.tidy()  # it may have been stopped between its record and that
        if kept:
            say(self.console, f"{title}: {len(kept)} of {len(jobs)} are finished already in {self.config.out}")
        if waiting:
            names = {job.key: job.label for job in waiting}
            with JobDisplay(self.console, names, title, finished=len(kept)) as display:
                try:
                    kept.update(run_tasks(waiting, run_job, self.workers, display))
                except TaskError as error:
                    raise self._named(error, waiting) from error
        return [kept[job.key] for job in jobs]

    def _named(self, error: TaskError, jobs: Sequence[Job]) -> TaskError:
        """The failure by the job's label in place of its key, its traceback in a file."""
        job = next((job for job in jobs if job.key == error.key), None)
        cause = error.cause
        if job is not None and error.log:
            with atomic_write(job.log) as temporary:
                temporary.write_text(error.log, encoding="utf-8")
            cause += f"; the traceback is in {job.log}"
        cause += f"; finished jobs are kept in {self.config.out}, the same command goes on from there"
        return TaskError(error.key if job is None else job.label, cause, error.log)

    def choose_rates(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The best multiplier per method by mean R@1 on held-out classes (see `tuning_seeds`), with all scores."""
        runs: dict[str, dict[str, list[float]]] = {}
        for record in records:
            own = runs.setdefault(record["method"], {})
            own.setdefault(multiplier_text(record["multiplier"]), []).append(record["validation"][-1]["harmonic"])
        scores = {key: {name: sum(values) / len(values) for name, values in own.items()} for key, own in runs.items()}
        chosen = {key: float(max(own, key=own.__getitem__)) for key, own in scores.items()}
        edge = [
            self.by_key[key].label
            for key, value in chosen.items()
            if value in (min(self.config.grid), max(self.config.grid))
        ]
        config = self.config
        embedded = config.train.data.kind == "embedded"
        classes = "classes of the tuning domain" if embedded else "training classes"
        explanation = (
            f"Harmonic R@1 in percent on held-out {classes}, which no test uses; multiples of the "
            f"base rate {config.train.optimizer.lr:g}; {self._runs(runs)}. The best, in bold, was used for every test."
        )
        if edge:
            explanation += f" At the edge of the grid, so a rate beyond it may be better: {', '.join(edge)}."
        return {
            "multipliers": config.grid,
            "scores": scores,
            "runs": runs,
            "chosen": chosen,
            "explanation": explanation,
        }

    def _runs(self, runs: dict[str, dict[str, list[float]]]) -> str:
        """How many runs stand behind each figure of the grid, in words."""
        counts = {key: max(len(values) for values in own.values()) for key, own in runs.items()}
        most = max(counts.values())
        fewer = [f"{self.by_key[key].label}: {count}" for key, count in counts.items() if count != most]
        return f"means of {most} seeds" + (f" ({'; '.join(fewer)})" if fewer else "")


def checkpoint_files(jobs: Sequence[Job]) -> dict[str, Path]:
    """Method -> its trained weights, for the jobs that kept them."""
    return {job.method.key: path for job in jobs if job.keep_model and (path := job.path(".safetensors")).exists()}
