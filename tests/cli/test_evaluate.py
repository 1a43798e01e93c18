"""What was trained, used again: `puma evaluate`, and `load_trained` for images that no run knows."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from puma_plugin.cli.main import main
from puma_plugin.evaluation import evaluate_retrieval
from puma_plugin.experiments.contestants.trained import load_trained
from puma_plugin.experiments.data.splits import load_test
from puma_plugin.experiments.running.inputs import Collate, make_inputs
from puma_plugin.experiments.running.processes import ALONE
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, TrainConfig


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


def test_a_run_with_relative_paths_is_evaluated_from_elsewhere(
    relative_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved as well: the figures go to where the run now lies."""
    run = tmp_path / "moved"
    shutil.copytree(relative_run, run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["evaluate", "--checkpoint=~/moved", "--report", "false"]) == 0
    before, after = (json.loads((out / "metrics.json").read_text()) for out in (relative_run, run / "evaluation"))
    assert after["runs"][0]["result"] == before["runs"][0]["result"]
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    load_trained("moved")


def test_a_run_is_loaded_where_its_backbone_lies_elsewhere(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "model.safetensors", run)
    settings = json.loads((trained / "config.json").read_text())
    settings["model"]["weights"] = "/nowhere/backbone.safetensors"
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"were in /nowhere/backbone\.safetensors, which is no file here; give their pl"
    ):
        load_trained(run)
    torch.manual_seed(5)
    model, _ = load_trained(run, weights=data / "backbone.safetensors")
    drawn = torch.rand(3)  # the caller's random numbers are left alone
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    for found, expected in zip(model.parameters(), load_trained(trained)[0].parameters(), strict=True):
        assert torch.equal(found, expected)
    other = load_file(data / "backbone.safetensors")
    other["cls_token"] += 1.0
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"was trained on another backbone: .*other values in 1 of .* cls_token"):
        load_trained(run, weights=tmp_path / "other.safetensors")
    settings["model"]["weights"] = "~/backbone.safetensors"
    (run / "config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("HOME", str(data))
    load_trained(run)


def test_the_trained_model_embeds_images_outside_of_its_run(trained: Path, data: Path) -> None:
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


def test_embedded_images_are_given_to_a_loaded_model_as_the_evaluation_gave_them(tmp_path: Path) -> None:
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


def test_classes_that_were_trained_on_are_named_in_an_evaluation(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four class folders more, and all are divided anew."""
    shutil.copytree(data / "upright", tmp_path / "upright")
    for number in range(4):
        shutil.copytree(data / "upright" / "red", tmp_path / "upright" / f"00{number}")
    arguments = ["evaluate", "--checkpoint", str(trained), "--report", "false", "--data.folders"]
    assert main([*arguments, json.dumps({"upright": str(tmp_path / "upright")}), "--out", str(tmp_path / "a")]) == 0
    note = "upright: 2 classes train and are in the test, the first is"
    assert note in capsys.readouterr().out
    (finding,) = json.loads((tmp_path / "a" / "metrics.json").read_text())["findings"]
    assert finding.startswith(note)
    assert main([*arguments, json.dumps({"upright": str(data / "upright")}), "--out", str(tmp_path / "b")]) == 0
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["findings"] == []


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
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose neighbours are known for any model, because they are copies of each other.

    odd: class a holds X alone, class b holds X, Z, Z. even: class c holds three times P, class d three times Q.
    """
    root = tmp_path_factory.mktemp("copies")
    generator = np.random.default_rng(5)
    pictures = {name: generator.integers(0, 256, (64, 64, 3), dtype=np.uint8) // 2 + 64 for name in "XZPQ"}
    for folder, content in (("odd/a", "X"), ("odd/b", "XZZ"), ("even/c", "PPP"), ("even/d", "QQQ")):
        (root / folder).mkdir(parents=True)
        for index, name in enumerate(content):
            Image.fromarray(pictures[name]).save(root / folder / f"{index}.png")
    return root


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
        # As a shell takes it, with quotes around the folders.
        assert shlex.split(metrics["command"]) == ["puma", *arguments, "--protocol", protocol, "--out", protocol]
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


def test_a_checkpoint_that_is_not_there_is_named_before_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--checkpoint", str(tmp_path / "typo")]) == 2
    assert (
        f"--checkpoint is {tmp_path / 'typo'}, which does not exist; give the folder of a run"
        in capsys.readouterr().err
    )
