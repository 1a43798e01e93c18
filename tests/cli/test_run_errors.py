"""What a user reads when a run cannot work: one line that names the dataset, the file and what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from puma_plugin.cli.main import main

Say = Callable[..., str]


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (40, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two distributions of six classes of three images."""
    for number in range(36):
        write_image(tmp_path / "data" / f"set{number % 2}" / f"class{number // 6}" / f"{number}.png", number)
    return tmp_path / "data"


def command(data: Path, out: Path, *more: str) -> list[str]:
    model = json.dumps({"backbone": "test_vit.r160_in1k", "weights": "none", "adapter_dim": 4, "pool_size": 2})
    run = ["--epochs", "1", "--global_batch_size", "6", "--device", "cpu", "--threads", "1", "--report", "false"]
    settings = ["--data.root", str(data), "--data.image_size", "64", "--data.workers", "0", "--model", model]
    return ["train", *settings, *run, "--out", str(out), *more]


@pytest.fixture
def say(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a training that must be refused, and returns its one line."""

    def refused(*more: str, started: bool = False) -> str:
        assert main(command(data, tmp_path / "out", *more)) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("puma train: error: ")
        assert "\n" not in line
        assert (tmp_path / "out").exists() == started
        return line

    return refused


def test_empty_distribution(data: Path, say: Say) -> None:
    (data / "hollow").mkdir()
    assert f"hollow: {data / 'hollow'} holds no subfolders; put each class into a subfolder" in say()


def test_several_mistakes_are_told_apart(data: Path, tmp_path: Path, say: Say) -> None:
    (data / "hollow").mkdir()
    write_image(data / "set1" / "class7" / "only.png", 99)
    line = say()
    assert f"{data / 'hollow'} holds no subfolders; put each class into a subfolder of its own; set1: class " in line
    (tmp_path / "root" / "CUB_200_2011").mkdir(parents=True)
    line = say("--data.kind", "benchmark", "--data.root", str(tmp_path / "root"), "--data.names", '["CUB"]')
    assert "unpack the archive again: get: https://" in line
    assert "(CUB_200_2011.tgz); tar xzf CUB_200_2011.tgz -C ROOT -> ROOT/CUB_200_2011/" in line


def test_many_absent_datasets_are_named_without_their_layouts(tmp_path: Path, say: Say) -> None:
    (tmp_path / "root").mkdir()
    line = say("--data.kind", "benchmark", "--data.root", str(tmp_path / "root"), "--data.names", '["CUB", "NABirds"]')
    assert f"CUB: not found in {tmp_path}/root (looked for folders called CUB_200_2011); put it there; NAB" in line
    assert "https://" not in line
    assert line.endswith(f"; put it there; see `puma datasets verify {tmp_path}/root`")
    assert line.count("see `puma") == 1


def test_folders_on_a_disk_that_is_not_mounted(data: Path, tmp_path: Path, say: Say) -> None:
    """Without a word the rest would be trained on. What is not asked for may be away."""
    told = f"is a link to {tmp_path}/unmounted, which does not exist; mount its disk, or mend or remove the link"
    (data / "set2").symlink_to(tmp_path / "unmounted")
    assert f"set2: {data}/set2 {told}" in say()
    (data / "set1" / "class9").symlink_to(tmp_path / "unmounted")
    line = say("--data.names", '["set0", "set1"]')
    assert line.endswith(f"{data}/set1/class9 {told}")
    assert "set2" not in line


def test_misspelt_backbone(say: Say) -> None:
    line = say("--model", '{"backbone": "vit_smal_patch16_224", "weights": "none"}')
    assert "model.backbone is 'vit_smal_patch16_224', which timm" in line
    assert "does not know; similar: vit_small_patch16_224, " in line


def test_empty_class(data: Path, say: Say) -> None:
    (data / "set0" / "class9").mkdir()
    line = say()
    assert f"set0: class folder {data / 'set0' / 'class9'} holds no image" in line
    assert "add some, or remove the folder" in line


def test_class_with_one_image(data: Path, say: Say) -> None:
    write_image(data / "set1" / "class7" / "only.png", 99)
    line = say()
    assert f"set1: class 'class7' has 1 image ({data / 'set1' / 'class7' / 'only.png'}), 2 are needed" in line
    assert "add images, pass small_classes='skip' (--data.small_classes skip) to leave such classes out, or" in line


def test_folder_beside_the_split_folders(data: Path, say: Say) -> None:
    for number, part in enumerate(("train", "test", "val")):
        write_image(data / "set2" / part / "class0" / "0.png", number)
    assert f"set2 (train): {data / 'set2'} has the folder 'val' beside train, test, whose images would not" in say()


def test_root_and_folders(data: Path, say: Say) -> None:
    line = say("--data.folders.shoes", str(data / "set0"))
    assert f"data.root is {data} and data.folders names shoes; give one of the two" in line


def test_missing_file(data: Path, tmp_path: Path, say: Say) -> None:
    rows = [f"{path.relative_to(data)},{path.parent.name}" for path in sorted((data / "set0").rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, "set0/class0/lost.png,class0"]))
    line = say("--data.kind", "manifest", "--data.manifest", str(tmp_path / "list.csv"))
    assert f"list: 1 of 19 files are missing, the first is {data}/set0/class0/lost.png" in line
    assert "bad_images='skip'" in line


@pytest.mark.parametrize("workers", ["0", "1"])
def test_unreadable_image(data: Path, say: Say, workers: str) -> None:
    bad = data / "set0" / "class0" / "0.png"
    bad.write_bytes(b"no picture")
    line = say("--data.workers", workers, "--global_batch_size", "18", "--data.validation_fraction", "0", started=True)
    # An image of a class that is trained on: the message speaks of no test.
    assert f"set0: {bad} cannot be read as an image" in line
    assert "replace the file, or pass bad_images='skip' (--data.bad_images skip) to leave" in line


def test_unreadable_test_image_is_found_before_the_training(data: Path, say: Say) -> None:
    bad = data / "set0" / "class5" / "34.png"
    bad.write_bytes(b"no picture")
    line = say(started=False)
    assert f"set0: 1 of 9 images to be tested on cannot be read, the first is {bad} (UnidentifiedImageError" in line
    assert "; replace the files, or pass bad_images='skip' (--data.bad_images skip) to leave such images out" in line


def test_test_image_that_becomes_unreadable_costs_no_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice of the message, given together with --resume, ends the run with the weights that it has trained."""
    from puma_plugin.experiments.running.training import Run

    out, bad = tmp_path / "out", data / "set0" / "class5" / "34.png"
    trained = Run.train

    def train_while_a_file_breaks(run: Run) -> None:
        trained(run)
        bad.write_bytes(b"no picture")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", train_while_a_file_breaks)
        assert main(command(data, out)) == 2
    assert f"{bad} cannot be read as an image" in capsys.readouterr().err
    before = load_file(out / "model.safetensors")
    assert not (out / "metrics.json").exists()

    with pytest.warns(UserWarning, match="set0: 1 of 18 images are left out"):
        assert main(command(data, out, "--resume", "--data.bad_images", "skip")) == 0
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["skipped"]["set0"]) == ["class5/34.png"]
    assert metrics["data"]["set0"]["test"]["images"] == 8

    # Without an image that it was trained on, it would be another training.
    (data / "set0" / "class0" / "0.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="set0: 2 of 18 images are left out"):
        assert main(command(data, out, "--resume", "--data.bad_images", "skip")) == 2
    assert "class 'class0' had 3 and has 2 (1 class differs); make them" in capsys.readouterr().err


def test_unreadable_image_skipped(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "set0" / "class0" / "0.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="set0"):
        assert main(command(data, tmp_path / "out", "--data.bad_images", "skip")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "set0: images left out: 1, the first is class0/0.png (UnidentifiedImageError" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["skipped"]["set0"]) == ["class0/0.png"]
    assert metrics["data"]["set0"]["train"]["images"] == 8


def test_wrong_class_count(layouts, data: Path, tmp_path: Path, say: Say) -> None:
    layouts.make_cub(tmp_path / "benchmark", classes=150)
    line = say("--data.kind", "benchmark", "--data.root", str(tmp_path / "benchmark"), "--data.names", '["CUB"]')
    assert f"CUB (test): 50 classes are listed in {tmp_path}/benchmark/CUB_200_2011, 100 are published" in line
    assert "check_counts=False (--data.check_counts false) for a reduced copy" in line


_LIMITED = """
import resource, sys
import torch, timm, pytorch_metric_learning, faiss, puma_plugin.experiments.running.session
from puma_plugin.cli.main import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room} * 2**20,) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_too_little_memory_for_the_batch(data: Path, tmp_path: Path) -> None:
    """A process that may take 240 MiB more, where the whole batch needs 440 and pieces of two images 220."""
    settings = ["--data.image_size", "448", "--global_batch_size", "18", "--evaluation_batch_size", "2"]
    arguments = command(data, tmp_path / "out", *settings, "--data.validation_fraction", "0")
    place = {"cwd": Path(__file__).parents[2], "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    script = [sys.executable, "-c", _LIMITED.format(room=240), *arguments]
    refused = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False, **place)
    assert refused.returncode == 2, refused.stderr
    assert "puma train: error: 18 images at once do not fit into the memory of cpu" in refused.stderr
    assert "set max_batch_per_process to 9 or less" in refused.stderr
