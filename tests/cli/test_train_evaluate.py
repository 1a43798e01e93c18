"""`puma train` and `puma evaluate` on small image folders, as a user runs them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from puma_plugin.cli.main import main

# Five of them are tested in each distribution: fewer have no intervals.
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "gold": (220, 190, 40),
           "grey": (130, 130, 130), "pink": (240, 140, 190), "navy": (20, 20, 90), "lime": (170, 250, 60),
           "brown": (110, 60, 30), "cyan": (60, 220, 230)}  # fmt: skip


def write_dataset(folder: Path, classes: dict[str, tuple[int, int, int]], shape: str, suffix: str) -> None:
    """Noisy colour fields with a bar whose direction is the dataset's own: 6 images of 40x36 per class."""
    generator = np.random.default_rng(len(shape))
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.clip(np.asarray(colour) + generator.normal(0, 25, (36, 40, 3)), 0, 255).astype(np.uint8)
            place = int(generator.integers(5, 30))
            pixels[(slice(None), slice(place, place + 4)) if shape == "upright" else (slice(place, place + 4),)] = 255
            Image.fromarray(pixels).save(folder / name / f"{index}{suffix}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    names = list(COLOURS)
    write_dataset(folder / "upright", COLOURS, "upright", ".png")
    for part, chosen in (("train", names[:5]), ("test", names[5:])):
        write_dataset(folder / "lying" / part, {name: COLOURS[name] for name in chosen}, "lying", ".jpg")
    (folder / "run.yaml").write_text(
        f"""
data:
  folders: {{upright: {folder / "upright"}, lying: {folder / "lying"}}}
  validation_fraction: 0.0
  augmentation: pad_crop
  image_size: 64
  workers: 0
model: {{backbone: test_vit.r160_in1k, weights: {folder / "backbone.safetensors"}, adapter_dim: 8, pool_size: 4,
         prompt_length: 2, embedding_size: 16, scale: 1.0}}
optimizer: {{lr: 1.0e-3, proxy_lr: 0.1}}
epochs: 3
global_batch_size: 20
device: cpu
threads: 1
evaluation_batch_size: 16
"""
    )
    torch.manual_seed(3)
    import timm
    from safetensors.torch import save_file

    backbone = timm.create_model("test_vit", img_size=64)
    save_file(backbone.state_dict(), folder / "backbone.safetensors")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """The run of the shell command itself."""
    out = data / "run"
    command = [sys.executable, "-m", "puma_plugin.cli.main", "train", "--config", str(data / "run.yaml")]
    finished = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "harmonic mean" in finished.stdout
    return out


def test_files_of_a_run(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    kept = {"checkpoint.pt", "classes.json", "config.json", "metrics.json", "model.safetensors", "report.html"}
    assert names == {*kept, ".lock"}
    classes = json.loads((trained / "classes.json").read_text())
    assert classes["upright"] == dict.fromkeys(sorted(COLOURS)[:5], 6)
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


def test_evaluate_finds_the_same_figures(trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    arguments = ["evaluate", "--checkpoint", str(trained), "--config", "run.yaml", "--out", "again"]
    assert main(arguments) == 0
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (trained, data / "again"))
    assert after["runs"][0]["result"] == before["runs"][0]["result"]
    # Other datasets than those trained on.
    only = ["--data.folders", json.dumps({"elsewhere": str(data / "upright")}), "--report", "false"]
    assert main([*arguments[:-1], "other", *only]) == 0
    other = json.loads((data / "other" / "metrics.json").read_text())
    assert other["distributions"] == ["elsewhere"]
    assert not (data / "other" / "report.html").exists()


def test_without_a_configuration_the_settings_are_those_of_the_run(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for checkpoint in (trained, trained / "model.safetensors"):
        assert main(["evaluate", "--checkpoint", str(checkpoint), "--out", "same", "--report", "false"]) == 0
        before, after = (json.loads((out / "metrics.json").read_text()) for out in (trained, tmp_path / "same"))
        assert after["runs"][0]["result"] == before["runs"][0]["result"]


def test_the_trained_model_embeds_images_outside_of_its_run(trained: Path, data: Path) -> None:
    from puma_plugin.evaluation import evaluate_retrieval
    from puma_plugin.experiments.trained import load_trained

    model, transform = load_trained(trained)
    paths = sorted((data / "lying" / "test").glob("*/*.jpg"))
    with torch.no_grad():
        embeddings = model(torch.stack([transform(Image.open(path)) for path in paths]))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(paths)))
    names = sorted({path.parent.name for path in paths})
    labels = np.array([[names.index(path.parent.name), 0] for path in paths])
    found = evaluate_retrieval(embeddings, labels, distribution_names=["lying"]).per_distribution["lying"]
    run = json.loads((trained / "metrics.json").read_text())["runs"][0]["result"]["per_distribution"]["lying"]
    assert found["recall_at_1"] == pytest.approx(run["recall_at_1"])
    assert found["map_at_r"] == pytest.approx(run["map_at_r"])


def test_classes_that_were_trained_on_are_named_in_an_evaluation(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four class folders more, and all are divided anew."""
    shutil.copytree(data / "upright", tmp_path / "upright")
    for number in range(4):
        shutil.copytree(tmp_path / "upright" / sorted(COLOURS)[9], tmp_path / "upright" / f"00{number}")
    arguments = ["evaluate", "--checkpoint", str(trained), "--report", "false", "--data.folders"]
    assert main([*arguments, json.dumps({"upright": str(tmp_path / "upright")}), "--out", str(tmp_path / "a")]) == 0
    note = "upright: 2 classes train and are in the test, the first is"
    assert note in capsys.readouterr().out
    (finding,) = json.loads((tmp_path / "a" / "metrics.json").read_text())["findings"]
    assert finding.startswith(note)
    assert main([*arguments, json.dumps({"upright": str(data / "upright")}), "--out", str(tmp_path / "b")]) == 0
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["findings"] == []


def test_a_run_does_not_go_on_with_other_images(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    first = sorted(COLOURS)[0]
    more = data / "upright" / first / "more.png"
    shutil.copy(data / "upright" / first / "0.png", more)
    try:
        assert main(["train", "--config", str(data / "run.yaml"), "--out", str(tmp_path / "run"), "--resume"]) == 2
    finally:
        more.unlink()
    line = capsys.readouterr().err
    assert "upright: the training images are not those that" in line
    assert f"class {first!r} had 6 and has 7 (1 class differs); make them the same again, or start without" in line


def test_a_folder_in_use_is_left_to_the_run_that_has_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from puma_plugin.utils import folder_lock

    out = tmp_path / "out"
    with folder_lock(out):
        assert main(["train", "--config", str(data / "run.yaml"), "--out", str(out)]) == 2
    assert "where another process is at work; wait for it, or give another --out" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {".lock"}


def test_batch_norms_keep_their_statistics(data: Path, tmp_path: Path) -> None:
    from puma_plugin.experiments.trained import load_trained

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
    # A file of an earlier version, which left them out.
    with safe_open(out / "model.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    older = {name: tensor for name, tensor in tensors.items() if "running" not in name and "tracked" not in name}
    save_file(older, out / "model.safetensors", {**metadata, "puma_run": "puma_plugin run 2"})
    with pytest.raises(
        ValueError, match=r"lacks the statistics that training gave the trunk, such as trunk\..*running_mean"
    ):
        load_trained(out)


def test_embedded_images_are_given_to_a_loaded_model_as_the_evaluation_gave_them(tmp_path: Path) -> None:
    from puma_plugin.experiments.config import DataConfig, ModelConfig, TrainConfig
    from puma_plugin.experiments.splits import load_test
    from puma_plugin.experiments.trained import load_trained
    from puma_plugin.experiments.training import ALONE, Collate, make_inputs

    out = tmp_path / "out"
    arguments = ["--data.kind", "embedded", "--model.backbone", "embedded", "--model.method", "frozen"]
    arguments += ["--data.augmentation", "pad_crop", "--report", "false", "--device", "cpu"]
    assert main(["train", *arguments, "--out", str(out)]) == 0
    model, transform = load_trained(out)
    config = TrainConfig(DataConfig(kind="embedded", augmentation="pad_crop"), ModelConfig("embedded"))
    inputs = make_inputs(config, model[0], ALONE)
    images = load_test(config.data).test["photo"]
    items = [images[index] for index in range(4)]
    expected, _ = Collate(inputs.evaluation_batch)([(inputs.evaluation_transform(x), y) for x, y in items])
    torch.testing.assert_close(torch.stack([transform(picture) for picture, _ in items]), expected)
    assert transform(Image.new("L", (50, 40))).shape == (3, 32, 32)


def test_differences_from_a_baseline(
    trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    arguments = ["evaluate", "--checkpoint", str(trained), "--config", "run.yaml", "--report", "false"]
    assert main([*arguments, "--out", "same", "--baseline", str(trained)]) == 0
    assert "paired by class" in capsys.readouterr().out
    kept = json.loads((data / "same" / "metrics.json").read_text())
    assert kept["baseline"]["paired"]
    assert {difference["value"] for difference in kept["baseline"]["differences"].values()} == {0.0}
    interval = kept["runs"][0]["intervals"]["harmonic_mean.recall_at_1"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    # Other datasets: no class in common by name, so the draws are independent.
    only = ["--data.folders", json.dumps({"upright": str(data / "lying" / "test")}), "--data.split", "all"]
    assert main([*arguments, *only, "--out", "unlike", "--baseline", str(trained / "metrics.json")]) == 0
    assert "unpaired" in capsys.readouterr().out
    (data / "unrelated.json").write_text(json.dumps({"runs": [{"result": {"per_class": {"cars": {}}}}]}))
    (data / "old.json").write_text(json.dumps({"runs": [{"result": {"unified": {}}}]}))
    for wrong, message in (
        ("nothing.json", "cannot be read"),
        ("run.yaml", "no result"),
        ("old.json", "sums by class"),
        ("unrelated.json", "nothing to compare"),
    ):
        assert main([*arguments, "--out", "refused", "--baseline", wrong]) == 2
        assert message in capsys.readouterr().err
        assert not (data / "refused").exists()


@pytest.fixture(scope="module")
def copies(data: Path) -> Path:
    """Images whose neighbours are known for any model, because they are copies of each other.

    odd: class a holds X alone, class b holds X, Z, Z. even: class c holds three times P, class d three times Q.
    """
    generator = np.random.default_rng(5)
    pictures = {name: generator.integers(0, 256, (64, 64, 3), dtype=np.uint8) // 2 + 64 for name in "XZPQ"}
    for folder, content in (("odd/a", "X"), ("odd/b", "XZZ"), ("even/c", "PPP"), ("even/d", "QQQ")):
        (data / "copies" / folder).mkdir(parents=True)
        for index, name in enumerate(content):
            Image.fromarray(pictures[name]).save(data / "copies" / folder / f"{index}.png")
    return data / "copies"


def test_protocol_and_ks(
    trained: Path, data: Path, copies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    folders = json.dumps({name: str(copies / name) for name in ("odd", "even")})
    arguments = ["evaluate", "--checkpoint", str(trained), "--config", "run.yaml", "--data.folders", folders]
    arguments += ["--data.split", "all", "--data.min_images", "1", "--ks", "[1, 2]"]
    found = {}
    for protocol in ("honest", "paper-code"):
        assert main([*arguments, "--protocol", protocol, "--out", protocol]) == 0
        metrics = json.loads((data / protocol / "metrics.json").read_text())
        assert (metrics["settings"]["protocol"], metrics["settings"]["ks"]) == (protocol, [1, 2])
        result = metrics["runs"][0]["result"]
        assert (result["protocol"], result["ks"]) == (protocol, [1, 2])
        assert list(result["unified"]) == ["recall_at_1", "recall_at_2", "map_at_r", "r_precision"]
        found[protocol] = result["per_distribution"]
        heading, odd = capsys.readouterr().out.splitlines()[2:4]
        assert heading.split() == ["R@1", "R@2", "MAP@R", "R-prec"]
        assert odd.split()[:3] == ["odd", *(f"{100 * found[protocol]['odd'][f'recall_at_{k}']:.2f}" for k in (1, 2))]
    # odd: X of b finds X of a first and Z second, each Z finds the other. X of a has no positive: left out by the one
    # protocol, a miss of the other.
    assert [found["honest"]["odd"][f"recall_at_{k}"] for k in (1, 2)] == pytest.approx([2 / 3, 3 / 3])
    assert [found["paper-code"]["odd"][f"recall_at_{k}"] for k in (1, 2)] == pytest.approx([2 / 4, 3 / 4])
    # even: both other copies stand first. R is 2, or 3 with the query, which can never be found.
    assert found["honest"]["even"]["r_precision"] == found["honest"]["even"]["map_at_r"] == 1
    assert found["paper-code"]["even"]["r_precision"] == pytest.approx(2 / 3)
    assert found["paper-code"]["even"]["map_at_r"] == pytest.approx(2 / 3)
    assert "protocol paper-code" in (data / "paper-code" / "report.html").read_text(encoding="utf-8")
    assert "protocol paper-code" not in (data / "honest" / "report.html").read_text(encoding="utf-8")
    for wrong, message in (
        (["--ks", "[2, 4]"], "ks is [2, 4]; give whole numbers from 1, and 1 among them"),
        (["--protocol", "other"], "paper-code"),
        (["--baseline", "paper-code"], "was counted with protocol paper-code, this evaluation is to be with honest"),
    ):
        assert main([*arguments, "--out", "refused", *wrong]) == 2
        assert message in capsys.readouterr().err
        assert not (data / "refused").exists()


def test_an_evaluation_does_not_replace_what_the_training_wrote(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the configuration of the training `out` is its folder; the figures then go below it."""
    monkeypatch.chdir(data)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    kept = {path.name: path.read_bytes() for path in run.iterdir()}
    arguments = ["evaluate", "--config", str(run / "config.json"), "--checkpoint", str(run), "--out", str(run)]
    assert main([*arguments, "--ks", "[1, 3]"]) == 0
    assert f"results in {run / 'evaluation'}\n" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == kept
    assert {path.name for path in (run / "evaluation").iterdir()} >= {"metrics.json"}


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--model.method", "full"],
            "it holds adapters; give the run's own configuration, as in --config RUN/",
        ),
        (["--model.adapter_dim", "16"], "adapter_dim"),
        (["--model.weights", "none"], "another backbone"),
        (["--checkpoint", "run.yaml"], "not a safetensors file"),
        (["--checkpoint", "nothing"], "is no file"),
        (["--checkpoint", "run/checkpoint.pt"], "which is what --resume goes on from; give its folder"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(
    trained: Path,
    data: Path,
    changes: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(data)
    arguments = ["evaluate", "--checkpoint", str(trained), "--config", "run.yaml", "--out", "refused", *changes]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (data / "refused").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_step_to_be_finished(data: Path, tmp_path: Path, how: int) -> None:
    """As a terminal sends it, or a scheduler: the workers that load images get it too."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "puma_plugin.cli.main", "train", "--config", str(data / "run.yaml")]
    command += ["--out", str(out), "--epochs", "5000", "--data.workers", "2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 200
    while not (out / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, how)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 130, text
    assert "stopping after this step" in text
    assert "the same command with --resume goes on from there" in text
    assert "Traceback" not in text
    assert torch.load(out / "checkpoint.pt", weights_only=True)["progress"]["global_step"] > 0


def test_a_shuffled_split_of_an_earlier_version_is_not_mixed_with_todays(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It drew other classes, and did not keep which."""
    shutil.copytree(trained, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    settings["data"]["shuffle_classes"] = True
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "run" / "classes.json").unlink()
    arguments = ["--config", str(data / "run.yaml"), "--data.shuffle_classes", "true"]
    assert main(["train", *arguments, "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "was begun by an earlier version, which shuffled the classes in another way" in capsys.readouterr().err
    out = tmp_path / "out"
    assert main(["evaluate", "--checkpoint", str(tmp_path / "run"), "--report", "false", "--out", str(out)]) == 0
    (finding,) = json.loads((out / "metrics.json").read_text())["findings"]
    assert "does not say which classes they were trained on" in finding


def test_a_checkpoint_that_is_not_there_is_named_before_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--checkpoint", str(tmp_path / "typo")]) == 2
    assert (
        f"--checkpoint is {tmp_path / 'typo'}, which does not exist; give the folder of a run"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("how", [None, signal.SIGINT, signal.SIGTERM])
def test_resumed_run_equals_the_uninterrupted(
    trained: Path, data: Path, tmp_path: Path, how: signal.Signals | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped and goes on ends with the very same weights.

    Stopped by Ctrl-C or a scheduler's SIGTERM it goes on from the step, else from its last epoch.
    """
    from puma_plugin.cli.parsing import make_parser, parse
    from puma_plugin.experiments.config import TrainConfig
    from puma_plugin.experiments.session import settings_of
    from puma_plugin.experiments.splits import load_splits
    from puma_plugin.experiments.training import Run

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


def test_an_earlier_run_is_not_overwritten(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--config", str(data / "run.yaml"), "--out", str(trained)]
    assert main(arguments) == 2
    assert "holds an earlier run; give --resume" in capsys.readouterr().err
    assert (
        main([*arguments, "--resume", "--optimizer.lr", "5e-3", "--loss.arguments.scale", "9", "--threads", "2"]) == 2
    )
    line = capsys.readouterr().err
    # Only what differs, and not --threads, which may.
    assert f"that {trained} was started with; different: loss.arguments.scale was " in line
    assert " and is 9; optimizer.lr was 0.001 and is 0.005; give those, or start without --resume" in line
    # A setting that an earlier version did not know had no effect there.
    settings = json.loads((trained / "config.json").read_text())
    del settings["data"]["small_classes"], settings["loss"]["miner"]
    (trained / "config.json").write_text(json.dumps(settings))
    assert main([*arguments, "--resume", "--loss.miner", "none"]) == 2
    assert "different: loss.miner was 'usual' and is 'none'; give" in capsys.readouterr().err
    assert main([*arguments[:-1], str(data / "never"), "--resume"]) == 2
    assert "does not exist; start without it" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["linear", "frozen"])
def test_an_interrupted_training_says_how_to_go_on(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from puma_plugin.experiments.training import Run

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
