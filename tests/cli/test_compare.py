"""`puma compare` in miniature on the embedded images: a few training images, one epoch, two seeds."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from puma_plugin.cli.main import main
from puma_plugin.experiments.comparing import comparison
from puma_plugin.experiments.data.splits import Splits, check_readable

GRID = """
methods: [frozen, linear, vpt_shallow]
losses: [CurricularFaceLoss]
seeds: [0, 1]
workers: 0
train:
  data: {kind: embedded, shots: 1, validation_fraction: 0.0, augmentation: none, workers: 0}
  model: {backbone: embedded, prompt_length: 2, embedding_size: 16}
  optimizer: {lr: 2.0e-4, proxy_lr: 0.3}
  epochs: 1
  global_batch_size: 64
  device: cpu
  threads: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "grid.yaml").write_text(GRID)
    assert main(["compare", str(folder / "grid.yaml"), "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture(scope="module")
def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "metrics.json").read_text())


def rows(folder: Path) -> list[str]:
    """What is kept of finished runs, without the settings' digests in the files' names."""
    return sorted(re.sub(r"-[0-9a-f]{12}(?=\.json$)", "", path.name) for path in (folder / "jobs").iterdir())


@pytest.mark.parametrize("arguments", [[], ["--seeds", "[1]"]])
def test_without_a_configuration(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    assert "CONFIG is missing; give a YAML file, or compare or ablations" in capsys.readouterr().err


def test_settings_without_a_configuration_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--print_config"])
    assert "methods:" in capsys.readouterr().out


def test_a_mistake_in_a_fresh_comparison_removes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = sorted((folder / "out" / "jobs").iterdir())
    wrong = ["--fresh", "--train.global_batch_size", "1000000"]
    assert main(["compare", str(folder / "grid.yaml"), "--out", str(folder / "out"), *wrong]) == 2
    assert "global_batch_size" in capsys.readouterr().err
    assert sorted((folder / "out" / "jobs").iterdir()) == kept


def test_files(folder: Path) -> None:
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {".lock", "jobs", "metrics.json", "table.md", "report.html", "pareto.svg"}
    # What is not trained runs once.
    assert rows(folder / "out") == [
        "test-frozen-data0-seed0.json",
        *(f"test-{row}-data0-seed{seed}.json" for row in ("linear", "vpt_shallow") for seed in (0, 1)),
    ]


def test_intervals_over_the_seeds(metrics: dict[str, Any]) -> None:
    values = [run["scores"]["harmonic"] for run in metrics["runs"] if run["method"] == "linear"]
    found = next(row for row in metrics["methods"] if row["key"] == "linear")["scores"]["harmonic"]
    assert found["mean"] == pytest.approx(mean(values))
    # t(1) at 97.5 % is 12.7062.
    assert found["high"] - found["mean"] == pytest.approx(12.7062 * stdev(values) / 2**0.5, rel=1e-4)
    assert "over the training seeds" in metrics["interval_method"]
    assert metrics["methods"][0]["scores"]["harmonic"]["low"] is None
    # The reference is the first method; it is untrained, so its single run stands against each seed of the others.
    assert metrics["accent"] == "frozen"


def test_of_one_run_each_intervals_are_over_the_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "out" / "jobs", tmp_path / "jobs")
    assert main(["compare", str(folder / "grid.yaml"), "--seeds", "[1]", "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "bootstrap interval over the test classes" in metrics["interval_method"]
    runs = {run["method"]: run for run in metrics["runs"]}
    for row in metrics["methods"]:
        run = runs[row["key"]]
        score, own = row["scores"]["harmonic"], run["intervals"]["harmonic_mean.recall_at_1"]
        # Up to the order of the sums, which Python 3.12 rounds in another way.
        assert [score[name] for name in ("mean", "low", "high")] == pytest.approx(
            [own[name] for name in ("value", "low", "high")], abs=1e-12
        )
        assert score["low"] < score["mean"] < score["high"]
        assert row["per_distribution"]["digit"]["low"] is not None
    assert " ± " in (tmp_path / "table.md").read_text(encoding="utf-8")
    text = capsys.readouterr().out
    assert "±: half the width of the 95 % bootstrap interval over the test classes\n" in text
    assert f"±{50 * (score['high'] - score['low']):.1f}" in text


def test_table_says_what_the_metrics_say(folder: Path, metrics: dict[str, Any]) -> None:
    text = (folder / "out" / "table.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == [
        "| method",
        "| Frozen features",
        "| Linear head",
        "| VPT, shallow",
    ]
    for line, row in zip(lines[1:], metrics["methods"], strict=True):
        assert f" {100 * row['scores']['harmonic']['mean']:.1f}" in line
        assert f" {row['trainable']:,} " in line
    # A head of 128 x 16 with bias, and two prompt tokens of width 128.
    assert [row["trainable"] for row in metrics["methods"]] == [0, 128 * 16 + 16, 128 * 16 + 16 + 2 * 128]


def test_figure_has_both_costs_and_every_label(folder: Path) -> None:
    root = ElementTree.parse(folder / "out" / "pareto.svg").getroot()
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"trained weights", "seconds of training", "Frozen features", "Linear head", "VPT, shallow"} <= texts
    report = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="cost"' in report
    assert "http" not in report


def test_finished_runs_are_kept_and_a_wider_grid_adds_to_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = folder / "out" / "jobs"
    times = {path.name: path.stat().st_mtime_ns for path in jobs.iterdir()}
    arguments = ["compare", str(folder / "grid.yaml"), "--out", str(folder / "out")]
    assert main([*arguments, "--methods", "[linear]", "--ablate", '{"model.embedding_size": [8]}']) == 0
    assert "2 of 4 are finished already" in capsys.readouterr().out
    assert {name: (jobs / name).stat().st_mtime_ns for name in times} == times
    assert len(list(jobs.iterdir())) == len(times) + 2
    assert {f"test-linear_model.embedding_size-8-data0-seed{seed}.json" for seed in (0, 1)} <= set(rows(folder / "out"))


def test_a_comparison_with_other_settings_lies_beside_the_earlier_one(
    folder: Path, metrics: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    (out / "metrics.json").write_text(json.dumps(metrics))  # tests before this one may have made another
    first = {path.name for path in (out / "jobs").iterdir()}
    arguments = ["compare", str(folder / "grid.yaml"), "--out", str(out)]
    replaced = f"the table of {out} was of other settings or methods; their kept runs stay in {out / 'jobs'}\n"

    # Neither the untrained nor the linear one looks at prompts.
    assert main([*arguments, "--train.model.prompt_length", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 of 5 are finished already" in said
    assert replaced in said
    second = {path.name for path in (out / "jobs").iterdir()}
    assert first < second
    assert len(second) == len(first) + 2
    now = json.loads((out / "metrics.json").read_text())
    assert [row["trainable"] for row in now["methods"]] == [0, 128 * 16 + 16, 128 * 16 + 16 + 3 * 128]
    files = {run["file"] for run in now["runs"]}
    assert {f"jobs/{name}" for name in second - first} < files
    assert len(files & {run["file"] for run in metrics["runs"]}) == 3

    # Going back finds everything again.
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "5 of 5 are finished already" in said
    assert replaced in said
    assert json.loads((out / "metrics.json").read_text())["methods"] == metrics["methods"]
    assert {path.name for path in (out / "jobs").iterdir()} == second

    # A table of more runs replaces nothing.
    assert main([*arguments, "--methods", "[linear]"]) == 0
    assert replaced in capsys.readouterr().out
    assert main([*arguments, "--methods", "[linear, frozen]"]) == 0
    assert "the table of" not in capsys.readouterr().out
    # Fresh ones are made in the place of those that were there.
    assert main([*arguments, "--methods", "[frozen]", "--fresh"]) == 0
    assert {path.name for path in (out / "jobs").iterdir()} == second


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_ctrl_c_does(
    how: signal.Signals, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """As a scheduler sends it, or a terminal that is closed: to this process and to its workers."""
    (tmp_path / "grid.yaml").write_text(GRID)
    out = tmp_path / "out"
    arguments = ["compare", str(tmp_path / "grid.yaml"), "--out", str(out), "--workers", "2", "--seeds", "[0]"]
    arguments += ["--train.epochs", "5000"]
    process = start(arguments, lambda: len(list((out / "jobs").glob("*.ckpt"))) == 2)
    os.killpg(process.pid, how)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 130, text
    assert text == f"\ninterrupted; finished runs are in {out}, the same command goes on from there\n"
    # What they go on from, and nothing half-written.
    assert sorted(path.suffix for path in (out / "jobs").iterdir()) == [".ckpt", ".ckpt"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_failed_run_is_one_sentence_and_changed_images_begin_anew(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training image is broken: what needs the test images only has finished, and is kept."""
    images = {(f"c{number // 4}", number): Image.new("RGB", (40, 40), (10 * number, 99, 99)) for number in range(16)}
    for (name, number), image in images.items():
        (tmp_path / "data" / "a" / name).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "data" / "a" / name / f"{number}.png")
    broken = tmp_path / "data" / "a" / "c0" / "0.png"
    broken.write_bytes(b"no picture")
    data = f"{{root: {tmp_path / 'data'}, validation_fraction: 0.0, augmentation: none, image_size: 64, workers: 0}}"
    lines = [
        "seeds: [0]",
        "train:",
        f"  data: {data}",
        "  model: {backbone: test_vit, weights: none, embedding_size: 8}",
        "  epochs: 1",
        "  global_batch_size: 8",
        "  device: cpu",
        "  threads: 1",
    ]
    (tmp_path / "grid.yaml").write_text("\n".join(lines))
    out = tmp_path / "out"
    arguments = ["compare", str(tmp_path / "grid.yaml"), "--out", str(out), "--workers", workers]
    assert main([*arguments, "--methods", "[frozen]"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--methods", "[frozen, linear]"]) == 2
    said = capsys.readouterr()
    assert "1 of 2 are finished already" in said.out
    assert said.err.startswith("puma compare: error: Linear head · data 0 · seed 0 failed: DatasetError: a: ")
    assert said.err.count("\n") == 1
    (log,) = (out / "jobs").glob("test-linear-data0-seed0-*.log")
    assert f"the traceback is in {log}" in said.err
    assert f"finished jobs are kept in {out}" in said.err
    assert "Traceback" in log.read_text(encoding="utf-8")
    images["c0", 0].save(broken)
    assert main([*arguments, "--methods", "[frozen, linear]"]) == 0
    assert "finished already" not in capsys.readouterr().out
    assert not list((out / "jobs").glob("*.log"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight classes of three pictures, of which each data seed chooses four to be tested on."""
    for index in range(8):
        (tmp_path / "data" / "a" / f"c{index}").mkdir(parents=True)
        for number in range(3):
            colour = (30 * index, 80 * number, 99)
            Image.new("RGB", (40, 40), colour).save(tmp_path / "data" / "a" / f"c{index}" / f"{number}.png")
    (tmp_path / "grid.yaml").write_text(
        f"""
methods: [linear]
seeds: [0]
workers: 0
train:
  data: {{root: {tmp_path / "data"}, validation_fraction: 0.0, image_size: 64, workers: 0}}
  model: {{backbone: test_vit, weights: none, embedding_size: 8}}
  loss: {{name: CosFaceLoss}}
  epochs: 1
  global_batch_size: 4
  device: cpu
  threads: 1
"""
    )
    return tmp_path


def test_unreadable_test_images_are_known_before_any_training(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(pictures / "grid.yaml"), "--out", str(pictures / "out")]
    broken = pictures / "data" / "a" / "c6" / "1.png"
    broken.write_bytes(b"no picture")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"a: 1 of 12 images to be tested on cannot be read, the first is {broken} (Unid" in said
    assert not (pictures / "out").exists()
    assert main([*arguments, "--train.data.bad_images", "skip"]) == 0


def test_each_choice_of_test_images_is_opened_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[set[str]] = []

    def spy(splits: Splits, progress: Any, before: set[str]) -> None:
        check_readable(splits, progress, before)
        opened.append({path for images in splits.test.values() for path in images.paths})

    monkeypatch.setattr(comparison, "check_readable", spy)
    shuffled = ["--train.data.shuffle_classes", "true"]
    arguments = ["compare", str(pictures / "grid.yaml"), "--out", str(pictures / "out"), *shuffled]
    assert main([*arguments, "--data_seeds", "[0, 1]"]) == 0
    assert len(opened) == 2
    assert opened[0] != opened[1]
    assert main([*arguments, "--data_seeds", "[0, 1, 2]", "--methods", "[frozen, linear]"]) == 0
    assert len(opened) == 3


def test_other_data_and_rates_on_held_out_classes(tmp_path: Path) -> None:
    """Image folders, two rates: the better one on the held-out training classes is used."""
    for distribution, channel in (("a", 0), ("b", 1)):
        for index in range(10):
            for number in range(4):
                colour = [40 * number, 100, 100]
                colour[channel] = 25 * index
                (tmp_path / distribution / f"c{index}").mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 40), tuple(colour)).save(tmp_path / distribution / f"c{index}" / f"{number}.png")
    (tmp_path / "grid.yaml").write_text(
        f"""
methods: [linear]
grid: [0.5, 2.0]
tuning_seeds: [0]
seeds: [0]
workers: 0
train:
  data:
    kind: image_folders
    folders: {{a: {tmp_path / "a"}, b: {tmp_path / "b"}}}
    validation_fraction: 0.4
    augmentation: none
    image_size: 64
    workers: 0
  model: {{backbone: test_vit, weights: none, embedding_size: 8}}
  loss: {{name: TripletMarginLoss}}
  epochs: 1
  global_batch_size: 8
  device: cpu
  threads: 1
"""
    )
    assert main(["compare", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rates = metrics["learning_rates"]
    assert set(rates["scores"]["linear"]) == {"0.5", "2"}
    assert rates["scores"]["linear"][f"{rates['chosen']['linear']:g}"] == max(rates["scores"]["linear"].values())
    assert metrics["runs"][0]["multiplier"] == rates["chosen"]["linear"]
    assert "held-out training classes" in rates["explanation"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # The loss takes no such argument: found although another row comes first.
        (["--losses", "[CosFaceLoss, CurricularFaceLoss]", "--train.loss.arguments", "{ema: sometimes}"], "ema"),
        (["--losses", "[CurricularFaceLoss, NoLoss]"], "Linear head, No: loss.name is 'NoLoss'"),
        (["--losses", "[TripletMarginLoss]"], "Linear head: "),  # one image per class: no pairs to compare
        (["--grid", "[0.5, 1.0]", "--train.data.domain", "tuning"], "train.data.domain is tuning"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_run_is_known_before_any_training(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    assert main(["compare", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing.yaml"],
            "nothing.yaml is no file; give a YAML file, or the name of one in the package: ablations, compare, demo",
        ),
        (["compare", "--methods", "[puma, magic]"], "methods holds 'magic'"),
        (["ablations", "--seeds", "[]"], "seeds is []"),
    ],
)
def test_mistakes_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
