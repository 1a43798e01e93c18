"""`puma demo` in miniature: the real images, backbone, methods and report, with a single image per training class."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from puma_plugin.cli.main import main
from puma_plugin.experiments.comparing.comparison import Comparison
from puma_plugin.experiments.comparing.recorded import load_recorded, recorded_rates

SMALL = ["--train.data.shots", "1", "--train.epochs", "2", "--map_images", "160", "--queries", "1", "--neighbours", "4"]
JOBS = {f"test-{method}-data0-seed0" for method in ("frozen", "linear", "puma")}


def interrupt(start: Callable[..., subprocess.Popen[str]], folder: Path) -> subprocess.CompletedProcess[str]:
    """Start the demo, and press Ctrl-C once its first job is finished."""
    arguments = ["demo", *SMALL, "--out", str(folder), "--workers", "1"]
    process = start(arguments, lambda: list((folder / "jobs").glob("*.json")))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="module")
def demo(
    start: Callable[..., subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that was interrupted and then completed by the same command, in this process."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    interrupted = interrupt(start, folder)
    before = {path.name for path in (folder / "jobs").glob("*.json")}
    assert len(before) in (1, 2)
    times = {name: (folder / "jobs" / name).stat().st_mtime_ns for name in before}
    assert main(["demo", *SMALL, "--out", str(folder), "--workers", "0"]) == 0
    assert all((folder / "jobs" / name).stat().st_mtime_ns == times[name] for name in before), "finished jobs ran again"
    return folder, interrupted


@pytest.fixture(scope="module")
def metrics(demo: tuple[Path, Any]) -> dict[str, Any]:
    return json.loads((demo[0] / "metrics.json").read_text())


def test_ctrl_c_is_answered_with_what_to_do(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    interrupted = demo[1]
    assert interrupted.returncode == 130
    assert "the same command goes on" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert "leaked" not in interrupted.stderr


def test_sigterm_is_answered_as_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Comparison, "run", lambda *arguments, **options: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("SIGTERM was left to who called"))
    try:
        assert main(["demo", *SMALL, "--out", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"interrupted; finished parts are in {tmp_path}, the same command goes on" in capsys.readouterr().err


def test_files(demo: tuple[Path, Any]) -> None:
    folder = demo[0]
    assert {path.name for path in folder.iterdir()} == {".lock", "jobs", "models", "metrics.json", "report.html"}
    names = [path.stem for path in (folder / "jobs").glob("*.json")]
    assert {re.sub("-[0-9a-f]{12}$", "", name) for name in names} == JOBS
    assert len(names) == len(JOBS)
    assert {path.name for path in (folder / "models").iterdir()} == {"linear.safetensors", "puma.safetensors"}
    assert not list((folder / "jobs").glob("*.ckpt"))


def test_metrics_hold_what_a_reader_needs(metrics: dict[str, Any]) -> None:
    assert {"machine", "versions", "commit", "settings", "seconds", "command", "date"} <= set(metrics)
    assert metrics["settings"]["train"]["data"]["shots"] == 1
    own = [row for row in metrics["methods"] if not row.get("recorded")]
    assert [row["key"] for row in own] == ["frozen", "linear", "puma"]
    assert [row["trainable"] for row in own] == [0, 128 * 128 + 128, 120_960]
    for row in own:
        per = {name: interval["mean"] for name, interval in row["per_distribution"].items()}
        assert len(per) == 8
        harmonic = 0.0 if min(per.values()) == 0 else 8 / sum(1 / value for value in per.values())
        assert row["scores"]["harmonic"]["mean"] == pytest.approx(harmonic)
        assert row["scores"]["worst"]["mean"] == min(per.values())
    run = next(run for run in metrics["runs"] if run["method"] == "puma")
    assert [point["epoch"] for point in run["validation"]] == [1, 2]
    assert run["result"]["num_queries"]["glyph"] == 2560


def test_full_fine_tuning_stands_in_the_table_from_the_recorded_run(metrics: dict[str, Any]) -> None:
    keys = {row["key"] for row in metrics["methods"] if row.get("recorded")}
    assert keys == {row["key"] for row in load_recorded()["methods"]} - {"frozen", "linear", "puma"}


def test_report_shows_the_run(demo: tuple[Path, Any], metrics: dict[str, Any]) -> None:
    text = (demo[0] / "report.html").read_text(encoding="utf-8")
    for section in ("result", "distributions", "curves", "map", "prompts", "neighbours", "run"):
        assert f'id="{section}"' in text
    assert text.count('class="tile query"') == 8
    assert "http" not in text
    for name in metrics["distributions"]:
        assert f"<h3>{name}</h3>" in text


def test_kept_embeddings_are_those_of_the_kept_weights(demo: tuple[Path, Any]) -> None:
    (kept,) = (demo[0] / "jobs").glob("test-puma-data0-seed0-*.npz")
    with np.load(kept) as arrays:
        assert arrays["embeddings"].shape == (5796, 128)
        assert arrays["prompt_weights"].shape == (8, 8)
        np.testing.assert_allclose(np.linalg.norm(arrays["embeddings"].astype(np.float32), axis=1), 1.0, atol=2e-3)
    weights = load_file(demo[0] / "models" / "puma.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == 120_960


def test_changed_settings_are_not_mixed_with_kept_results(demo: tuple[Path, Any]) -> None:
    """A job of other settings does not take the kept result."""
    from rich.console import Console

    from puma_plugin.cli.parsing import make_parser, packaged_config, parse
    from puma_plugin.experiments.contestants.methods import named
    from puma_plugin.experiments.settings.comparison_config import DemoConfig

    def finished(*more: str) -> int:
        parser = make_parser("demo", "", DemoConfig, [packaged_config("demo")])
        config, _ = parse(parser, DemoConfig, [*SMALL, "--out", str(demo[0]), *more])
        rates = {"puma": 1.0, "linear": 1.0, **recorded_rates(), **config.rates}
        jobs = Comparison(config, named(("frozen", "linear", "puma")), Console()).test_jobs(rates, [0], [0])
        return sum(job.finished() is not None for job in jobs)

    assert finished() == 3
    # What is not trained looks at neither, a linear head not at the second.
    assert finished("--train.global_batch_size", "32") == 1
    assert finished("--train.model.drop", "0.25") == 2
    assert finished("--rates", '{"puma": 0.3}') == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--train.loss.name", "NoSuchLoss"], "loss.name is 'NoSuchLoss'"),
        (["--rates", '{"pumma": 1.0}'], "rates holds 'pumma'; give some of frozen"),
        (["--rates", '{"puma": 0.0}'], "multipliers must be positive"),
    ],
)
def test_a_mistake_in_a_fresh_demo_removes_nothing(
    wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "jobs" / "test-puma-data0-seed0-0123456789ab.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    assert main(["demo", *SMALL, "--fresh", "--out", str(tmp_path), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
