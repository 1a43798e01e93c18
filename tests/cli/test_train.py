"""`puma train` on small image folders, as a user runs it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puma_plugin.cli.main import main
from puma_plugin.experiments.contestants.trained import load_trained
from puma_plugin.utils import folder_lock


def test_files_of_a_run(trained: Path, data: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    kept = {"checkpoint.pt", "classes.json", "config.json", "metrics.json", "model.safetensors", "report.html"}
    assert names == {*kept, ".lock"}
    classes = json.loads((trained / "classes.json").read_text())
    assert classes["upright"] == dict.fromkeys(sorted(path.name for path in (data / "upright").iterdir())[:5], 6)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["data"]["upright"] == {
        "train": {"classes": 5, "images": 30},
        "test": {"classes": 5, "images": 30},
    }
    assert metrics["distributions"] == ["upright", "lying"]
    assert metrics["command"].startswith("puma train --config")
    assert {"machine", "versions", "commit", "settings", "date"} <= set(metrics)
    assert metrics["settings"]["seed"] == 0
    run = metrics["runs"][0]
    assert run["steps"] == 9
    assert [entry["epoch"] for entry in run["history"]] == [1, 2, 3]
    per = run["result"]["per_distribution"]
    values = [per[name]["recall_at_1"] for name in ("upright", "lying")]
    assert all(0.0 <= value <= 1.0 for value in values)
    harmonic = 0.0 if min(values) == 0 else 2.0 / (1.0 / values[0] + 1.0 / values[1])
    assert metrics["methods"][0]["scores"]["harmonic"]["mean"] == pytest.approx(harmonic)
    report = (trained / "report.html").read_text(encoding="utf-8")
    assert "lying" in report
    assert "prompts" in report
    assert "http" not in report


def test_report_shows_every_metric_with_its_bootstrap_interval(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    intervals = metrics["runs"][0]["intervals"]
    row = metrics["methods"][0]
    for figure, name in (
        (row["scores"]["unified"], "unified"),
        (row["per_distribution"]["lying"], "per_distribution.lying"),
    ):
        own = intervals[f"{name}.recall_at_1"]
        assert (figure["mean"], figure["low"], figure["high"]) == (own["value"], own["low"], own["high"])
    report = (trained / "report.html").read_text(encoding="utf-8")
    section = report.partition('<section id="metrics">')[2].partition("</section>")[0]
    for place in ("per_distribution.upright.map_at_r", "harmonic_mean.recall_at_8", "unified.r_precision"):
        own = {name: f"{100 * value:.1f}" for name, value in intervals[place].items()}
        assert f"<td>{own['value']}<small>{own['low']} to {own['high']}</small></td>" in section


def test_a_folder_in_use_is_left_to_the_run_that_has_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with folder_lock(out):
        assert main(["train", "--config", str(data / "run.yaml"), "--out", str(out)]) == 2
    assert "where another process is at work; wait for it, or give another --out" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {".lock"}


def test_batch_norms_keep_their_statistics(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = ["--model.backbone", "test_resnet", "--model.weights", "none", "--model.method", "full"]
    assert main(["train", "--config", str(data / "run.yaml"), "--out", str(out), *changes]) == 0
    assert main(["evaluate", "--checkpoint", str(out), "--report", "false"]) == 0
    before, after = (json.loads((f / "metrics.json").read_text()) for f in (out, out / "evaluation"))
    assert after["runs"][0]["result"] == before["runs"][0]["result"]
    kept = torch.load(out / "checkpoint.pt", weights_only=True)["models"]["trunk"]["tensors"]
    model, _ = load_trained(out)
    assert any(name.endswith("running_var") for name in kept)
    for name, tensor in model[0].state_dict().items():
        torch.testing.assert_close(tensor, kept[name])


CONTESTANTS = ["full", "separate", "linear", "frozen", "lora", "vpt_shallow", "vpt_deep", "adaptformer"]


@pytest.mark.parametrize("method", CONTESTANTS)
def test_other_methods_train_and_evaluate(
    method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", str(data / "run.yaml"), "--model.method", method, "--epochs", "1", "--report", "false"]
    assert main(["train", *common, "--out", str(tmp_path / "a")]) == 0
    assert main(["evaluate", *common, "--checkpoint", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text())["runs"][0] for name in "ab")
    assert first["result"] == second["result"]
    head = 64 * 16 + 16
    weights = {name: value for name, value in load_file(data / "backbone.safetensors").items() if "head" not in name}
    backbone = sum(value.numel() for value in weights.values())
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    assert (
        first["trainable"]
        == {
            "full": backbone + head,
            "separate": 2 * (backbone + head),
            "linear": head,
            "frozen": 0,
            "lora": depth * 16 * (64 + 3 * 64) + head,
            "vpt_shallow": 2 * 64 + head,
            "vpt_deep": depth * 2 * 64 + head,
            "adaptformer": depth * 2 * 2 * 64 * 8 + head,
        }[method]
    )
    if method == "separate":
        assert (first["scores"]["unified"], first["result"]["leak"]) == (None, None)
    if method in ("lora", "vpt_deep"):
        other = {"lora": ["--model.lora_alpha", "4"], "vpt_deep": ["--model.weights", "none"]}[method]
        arguments = ["evaluate", *common, *other, "--checkpoint", str(tmp_path / "a"), "--out", str(tmp_path / "c")]
        assert main(arguments) == 2
        assert {"lora": "lora_alpha", "vpt_deep": "another backbone"}[method] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model.backbone", "no_such_model"], "timm"),
        (["--model.backbone", "vit_tiny_patch16_224"], "could not be loaded"),
        (["--loss.name", "NoSuchLoss"], "loss.name is 'NoSuchLoss'"),
        (["--loss.arguments.colour", "3"], "do not fit CurricularFaceLoss"),
        (["--device", "cuda:77"], "device is 'cuda:77'"),
        (["--model.weights", "missing.pth"], "which is no file"),
        (["--data.folders.broken", "hollow"], "distribution broken: "),
    ],
)
def test_refusals_before_training(
    data: Path,
    changes: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", str(data / "run.yaml"), "--out", "x", *changes]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_losses_of_pytorch_metric_learning(data: Path, tmp_path: Path) -> None:
    arguments = ["--loss.name", "ProxyAnchorLoss", "--loss.arguments", '{"margin": 0.1, "alpha": 32}', "--epochs", "1"]
    out = str(tmp_path / "x")
    assert main(["train", "--config", str(data / "run.yaml"), "--out", out, "--report", "false", *arguments]) == 0
    shutil.rmtree(out)
    arguments = ["--loss.name", "MultiSimilarityLoss", "--loss.arguments", "{}", "--epochs", "1"]
    assert main(["train", "--config", str(data / "run.yaml"), "--out", out, "--report", "false", *arguments]) == 0
