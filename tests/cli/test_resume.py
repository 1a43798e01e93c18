"""Stopping `puma train`, and going on with `--resume`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puma_plugin.cli.main import main
from puma_plugin.cli.parsing import make_parser, parse
from puma_plugin.experiments.data.splits import load_splits
from puma_plugin.experiments.running.agreement import settings_of
from puma_plugin.experiments.running.training import Run
from puma_plugin.experiments.settings.config import TrainConfig


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_step_to_be_finished(
    data: Path, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, how: int
) -> None:
    """As a terminal sends it, or a scheduler: the workers that load images get it too."""
    out = tmp_path / "out"
    arguments = ["train", "--config", str(data / "run.yaml"), "--out", str(out), "--epochs", "5000"]
    process = start([*arguments, "--data.workers", "2"], (out / "checkpoint.pt").exists)
    os.killpg(process.pid, how)
    text = process.communicate(timeout=60)[1]
    assert "stopping after this step" in text
    assert "Traceback" not in text
    require_stopped(process, text, out)


def require_stopped(process: subprocess.Popen[str], said: str, out: Path) -> None:
    assert process.returncode == 130, said
    assert "the same command with --resume goes on from there" in said
    assert torch.load(out / "checkpoint.pt", weights_only=True)["progress"]["global_step"] > 0


_TALKATIVE = """
import sys
from puma_plugin.cli.main import main
from puma_plugin.experiments.running.display import JobDisplay

JobDisplay.__init__.__kwdefaults__["seconds"] = 0.01  # between two lines
sys.exit(main(sys.argv[1:]))
"""


def test_a_training_whose_output_nobody_reads_any_more_leaves_a_checkpoint(data: Path, tmp_path: Path) -> None:
    """As in `puma train ... | head`."""
    out = tmp_path / "out"
    arguments = ["train", "--config", str(data / "run.yaml"), "--out", str(out), "--epochs", "5000"]
    process = subprocess.Popen(
        [sys.executable, "-c", _TALKATIVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in process.stdout:
        if (out / "checkpoint.pt").exists():
            break
    process.stdout.close()
    process.stdout = None
    text = process.communicate(timeout=60)[1]
    assert "nobody reads the output any more\n\nstopping after this step" in text
    assert "Error" not in text
    require_stopped(process, text, out)


@pytest.mark.parametrize("how", [None, signal.SIGINT, signal.SIGTERM])
def test_resumed_run_equals_the_uninterrupted(
    trained: Path, data: Path, tmp_path: Path, how: signal.Signals | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped and goes on ends with the very same weights.

    Stopped by Ctrl-C or a scheduler's SIGTERM it goes on from the step, else from its last epoch.
    """
    out = tmp_path / "stopped"
    out.mkdir()
    parser = make_parser("train", "", TrainConfig)
    config, _ = parse(parser, TrainConfig, ["--config", str(data / "run.yaml"), "--out", str(out)])

    def stop(content: dict) -> None:
        if content["step"] == 5:
            if how is None:
                raise KeyboardInterrupt
            signal.raise_signal(how)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run = Run(config, load_splits(config.data), checkpoint=out / "checkpoint.pt", progress=stop)
    run.stops_on_signals = True
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert ("stopping after this step" in capsys.readouterr().err) == (how is not None)
    kept = torch.load(out / "checkpoint.pt", weights_only=True)["progress"]
    assert kept["global_step"] == (3 if how is None else 5)
    (out / "config.json").write_text(json.dumps(settings_of(config)))
    torch.manual_seed(12345)
    assert main(["train", "--config", str(data / "run.yaml"), "--out", str(out), "--resume", "--report", "false"]) == 0
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained, out))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    histories = [json.loads((folder / "metrics.json").read_text())["runs"][0]["history"] for folder in (trained, out)]
    losses = [[entry["metric_loss"] for entry in history] for history in histories]
    assert losses[0] == losses[1]


def test_seconds_of_a_resumed_run(trained: Path, data: Path, tmp_path: Path) -> None:
    """Those of the training are of all starts, those of the command of its own start, and are called so."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    for entry in checkpoint["progress"]["history"]:
        entry["seconds"] = 1000.0
    torch.save(checkpoint, out / "checkpoint.pt")
    assert main(["train", "--config", str(data / "run.yaml"), "--out", str(out), "--resume", "--report", "false"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["methods"][0]["seconds"] == 3 * 1000.0
    assert metrics["seconds"] < 1000.0
    facts = metrics["facts"]
    assert [name for name in facts if "seconds" in name.lower()] == ["Seconds of the last start"]
    assert float(facts["Seconds of the last start"]) == pytest.approx(metrics["seconds"], abs=0.6)


@pytest.mark.parametrize("method", ["linear", "frozen"])
def test_an_interrupted_training_says_how_to_go_on(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    arguments = ["train", "--config", str(data / "run.yaml"), "--model.method", method, "--epochs", "1"]
    arguments += ["--report", "false", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", interrupt)
        assert main(arguments) == 130
    # Nothing to go on from yet.
    assert capsys.readouterr().err == "\npuma train: interrupted\n"
    goes_on = f"interrupted; a checkpoint is in {out}, the same command{{}} goes on from there"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "embed", interrupt)  # during the test
        assert main(arguments) == 130
        assert goes_on.format(" with --resume") in capsys.readouterr().err
        assert main([*arguments, "--resume"]) == 130
        assert goes_on.format("") in capsys.readouterr().err
    unfinished = out / ".checkpoint.pt.a1b2c3d4.tmp"  # of a process that was killed while it wrote
    unfinished.write_bytes(b"half")
    assert main([*arguments, "--resume"]) == 0
    assert (out / "metrics.json").exists()
    assert not unfinished.exists()


def test_resume_auto_begins_goes_on_and_looks_at_the_settings(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command for schedulers that give it again."""
    out = tmp_path / "out"
    arguments = ["train", "--config", str(data / "run.yaml"), "--model.method", "linear", "--report", "false"]
    arguments += ["--out", str(out), "--resume", "auto"]
    assert main(arguments) == 0
    assert "goes on from" not in capsys.readouterr().out
    assert main(arguments) == 0
    assert "goes on from step 9 of 9" in capsys.readouterr().out
    assert main([*arguments, "--epochs", "4"]) == 2
    assert "different: epochs was 3 and is 4" in capsys.readouterr().err
    assert main([*arguments[:-1], "maybe"]) == 2
    assert "argument --resume: invalid choice: 'maybe'" in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    arguments = ["train", "--config", str(data / "run.yaml"), "--out", str(run)]
    assert main(arguments) == 2
    assert "holds an earlier run; give --resume" in capsys.readouterr().err
    assert (
        main([*arguments, "--resume", "--optimizer.lr", "5e-3", "--loss.arguments.scale", "9", "--threads", "2"]) == 2
    )
    line = capsys.readouterr().err
    # Only what differs, and not --threads, which may.
    assert f"that {run} was started with; different: loss.arguments.scale was " in line
    assert " and is 9; optimizer.lr was 0.001 and is 0.005; give those, or start without --resume" in line
    assert main([*arguments[:-1], str(tmp_path / "never"), "--resume"]) == 2
    assert "does not exist; start without it" in capsys.readouterr().err


def test_a_run_goes_on_where_its_data_lie_now(
    relative_run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a cluster whose jobs get folders of their own. Which images and weights they are is looked at itself."""
    run = tmp_path / "run"
    shutil.copytree(relative_run, run)
    again = ["train", "--config", str(data / "relative.yaml"), "--out", str(run), "--resume", "--report", "false"]
    monkeypatch.chdir(data)
    assert main(again) == 0
    shutil.copytree(data, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert main(again) == 0
    kept = json.loads((run / "config.json").read_text())
    assert kept["data"]["folders"]["lying"] == f"{tmp_path}/moved/lying"
    assert kept["model"]["weights"] == f"{tmp_path}/moved/backbone.safetensors"
    absolute = {name: str(data / name) for name in ("upright", "lying")}
    absolute_again = [*again, "--data.folders", json.dumps(absolute), "--model.weights", f"{data}/backbone.safetensors"]
    assert main(absolute_again) == 0
    # Which distributions there are must not change, nor the images of one.
    del absolute["lying"]
    assert main([*again, "--data.folders", json.dumps(absolute)]) == 2
    assert f"different: data.folders.lying was '{data}/lying' and is None" in capsys.readouterr().err
    first = sorted((tmp_path / "moved" / "lying" / "train").iterdir())[0]
    shutil.rmtree(first)
    assert main(again) == 2
    assert "lying: the training images are not those that" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_images(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    first = sorted(path.name for path in (data / "upright").iterdir())[0]
    more = data / "upright" / first / "more.png"
    shutil.copy(data / "upright" / first / "0.png", more)
    try:
        assert main(["train", "--config", str(data / "run.yaml"), "--out", str(tmp_path / "run"), "--resume"]) == 2
    finally:
        more.unlink()
    line = capsys.readouterr().err
    assert "upright: the training images are not those that" in line
    assert f"class {first!r} had 6 and has 7 (1 class differs); make them the same again, or start without" in line
