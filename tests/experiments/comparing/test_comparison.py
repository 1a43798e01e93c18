"""Which jobs a comparison runs, and how learning rates are chosen."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from puma_plugin.cli.parsing import make_parser, packaged_config, parse
from puma_plugin.experiments.comparing.comparison import Comparison
from puma_plugin.experiments.contestants.methods import MAIN_KEYS, METHODS, named
from puma_plugin.experiments.settings.comparison_config import DemoConfig
from puma_plugin.utils import folder_lock


def comparison(*arguments: str, methods: tuple[str, ...] = MAIN_KEYS) -> Comparison:
    parser = make_parser("demo", "", DemoConfig, [packaged_config("demo")])
    config, _ = parse(parser, DemoConfig, arguments)
    return Comparison(config, named(methods), Console(quiet=True))


def test_one_grid_for_every_trained_method_on_classes_that_no_test_uses() -> None:
    full = comparison()
    jobs = full.rate_jobs()
    by_method: dict[str, list[tuple[float, int]]] = {}
    for job in jobs:
        by_method.setdefault(job.method.key, []).append((job.multiplier, job.config.seed))
        assert job.purpose == "rate"
        assert job.config.data.domain == "tuning"
        assert job.config.data.seed == job.config.seed
        # Only the last epoch is judged.
        assert job.config.validate_every == job.config.epochs
    every = [(multiplier, seed) for multiplier in full.config.grid for seed in (0, 1)]
    assert by_method == dict.fromkeys(("linear", "puma", "adapters", "separate", "full"), every)
    assert len({job.key for job in jobs}) == len(jobs)
    fewer = comparison("--separate_seeds", "1", "--tuning_seeds", "[0, 1, 2]").rate_jobs()
    assert [sum(job.method.key == method for job in fewer) for method in ("puma", "separate")] == [
        3 * len(full.config.grid),
        len(full.config.grid),
    ]
    tests = full.test_jobs(dict.fromkeys(METHODS, 1.0), full.config.data_seeds, full.config.seeds)
    assert {job.config.data.domain for job in tests} == {"benchmark"}


def test_every_pair_of_seeds_once() -> None:
    full = comparison()
    jobs = full.test_jobs(dict.fromkeys(METHODS, 1.0), [0, 1, 2], [0, 1, 2])
    assert len({job.key for job in jobs}) == len(jobs) == 5 * 9 + 3
    assert sum(job.keep_model for job in jobs) == 5
    fewer = comparison("--separate_seeds", "1").test_jobs(dict.fromkeys(METHODS, 1.0), [0, 1, 2], [0, 1, 2])
    assert len(fewer) == 4 * 9 + 3 + 3


def test_methods_differ_only_in_what_they_are() -> None:
    base = comparison().config.train
    puma, full = (METHODS[key].configure(base, 2.0, 1, 5) for key in ("puma", "full"))
    assert (puma.model.method, full.model.method) == ("puma", "full")
    assert puma.optimizer == full.optimizer
    assert puma.optimizer.lr == pytest.approx(2 * base.optimizer.lr)
    assert (puma.data, puma.epochs, puma.global_batch_size, puma.seed) == (
        full.data,
        full.epochs,
        full.global_batch_size,
        5,
    )
    assert puma.data.seed == 1
    bare = METHODS["adapters"].configure(base, 1.0, 0, 0).model
    assert (bare.method, bare.drop) == ("adapters", 0.0)


GRID = [0.25, 0.5, 1.0, 2.0, 4.0]


def _records(scores: dict[str, list[list[float]]]) -> list[dict]:
    """Scores of every multiplier, one or more runs each."""
    return [
        {"method": method, "multiplier": multiplier, "validation": [{"epoch": 11, "harmonic": value}]}
        for method, values in scores.items()
        for multiplier, runs in zip(GRID, values, strict=True)
        for value in runs
    ]


def test_the_best_rate_is_chosen_and_edges_are_reported() -> None:
    scores = {"puma": [[0.38], [0.40], [0.44], [0.45], [0.41]], "full": [[0.2], [0.3], [0.4], [0.5], [0.6]]}
    rates = comparison("--grid", str(GRID)).choose_rates(_records(scores))
    assert rates["chosen"] == {"puma": 2.0, "full": 4.0}
    assert rates["scores"]["puma"]["2"] == 0.45
    explanation = rates["explanation"]
    assert "At the edge of the grid, so a rate beyond it may be better: Full fine-tuning." in explanation
    assert "held-out classes of the tuning domain, which no test uses" in explanation


def test_a_kept_record_is_used_for_exactly_its_settings(tmp_path: Path) -> None:
    full = comparison("--out", str(tmp_path))
    for job in full.test_jobs(dict.fromkeys(METHODS, 1.0), [0], [0], keep_models=False):
        settings = json.loads(json.dumps(job.settings()))
        job.path().parent.mkdir(exist_ok=True)
        job.path().write_text(json.dumps({"settings": settings, "seconds": 1.0}))
        assert job.finished() == {"settings": settings, "seconds": 1.0}
        settings["config"]["model"]["drop"] = 0.3
        job.path().write_text(json.dumps({"settings": settings}))
        assert job.finished() is None


def test_a_rate_at_which_one_run_collapses_loses() -> None:
    scores = {
        "puma": [[0.40, 0.41], [0.50, 0.51], [0.53, 0.52], [0.52, 0.53], [0.56, 0.03]],
        "separate": [[0.1], [0.1], [0.2], [0.1], [0.0]],
    }
    rates = comparison("--grid", str(GRID)).choose_rates(_records(scores))
    assert rates["chosen"]["puma"] == 1.0
    assert rates["scores"]["puma"]["4"] == pytest.approx(0.295)
    assert rates["runs"]["puma"]["4"] == [0.56, 0.03]
    assert "means of 2 seeds (One model per dataset: 1)" in rates["explanation"]


def test_what_a_stopped_job_left_behind_its_record_goes(tmp_path: Path) -> None:
    """Ctrl-C between the record and the removal of the checkpoint: the next run takes the record and tidies up."""
    one = comparison("--out", str(tmp_path), methods=("linear",))
    (job,) = one.test_jobs({"linear": 1.0}, [0], [0], keep_models=False)
    job.path().parent.mkdir()
    record = {"settings": json.loads(json.dumps(job.settings())), "seconds": 1.0}
    job.path().write_text(json.dumps(record))
    job.checkpoint.write_bytes(b"unfinished")
    job.log.write_text("Traceback")
    # Of a process that was killed in the middle of a write.
    for folder in (tmp_path, job.path().parent):
        (folder / ".metrics.json.a1b2c3d4.tmp").write_text("{")
    outcome = one.run({"linear": 1.0}, [0], [0], try_rates=False, keep_models=False, fresh=False)
    assert outcome.records == [record]
    assert list(job.path().parent.iterdir()) == [job.path()]
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_folder_is_locked_from_the_first_rate_to_the_last_test(tmp_path: Path) -> None:
    class Watched(Comparison):
        def choose_rates(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
            with pytest.raises(ValueError, match="is at work"), folder_lock(self.config.out, patience=0.2):
                pass
            return super().choose_rates(records)

    parser = make_parser("demo", "", DemoConfig, [packaged_config("demo")])
    small = ["--train.data.shots", "1", "--train.epochs", "1", "--grid", "[1.0, 2.0]", "--tuning_seeds", "[0]"]
    config, _ = parse(parser, DemoConfig, [*small, "--workers", "0", "--out", str(tmp_path)])
    run = Watched(config, named(("linear",)), Console(quiet=True))
    outcome = run.run({"linear": 5.0}, [0], [0], try_rates=True, keep_models=False, fresh=False)
    assert outcome.rates is not None
    assert [job.multiplier for job in outcome.jobs] == [outcome.rates["chosen"]["linear"]]
    assert [record["multiplier"] for record in outcome.records] == [outcome.rates["chosen"]["linear"]]
    # Rates that are given are not tried.
    given = run.run({"linear": 2.0}, [0], [0], try_rates=False, keep_models=False, fresh=False)
    assert given.rates is None
    assert [job.multiplier for job in given.jobs] == [2.0]
    # Nor are those of methods that are not trained.
    frozen = Watched(config, named(("frozen",)), Console(quiet=True))
    untrained = frozen.run({"frozen": 1.0}, [0], [0], try_rates=True, keep_models=False, fresh=False)
    assert untrained.rates is None
    assert [record["method"] for record in untrained.records] == ["frozen"]
