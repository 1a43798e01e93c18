"""Small image folders, and a run of `puma train` on them, which the tests of the commands share."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

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


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """``start(arguments, until)``: the command `puma` in a process group of its own, returned once `until()` holds.

    A signal to the group reaches the command and its workers, as from a terminal. A suite that was started in the
    background ignores some signals, which its children would inherit.
    """

    def start_and_wait(arguments: Sequence[str], until: Callable[[], object]) -> subprocess.Popen[str]:
        def hear() -> None:
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)

        process = subprocess.Popen(
            [sys.executable, "-m", "puma_plugin.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear,
        )
        deadline = time.monotonic() + 600
        while not until() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return process

    return start_and_wait


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two distributions and run.yaml, the settings of a run on them. Tests leave these as they are."""
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
    backbone = timm.create_model("test_vit", img_size=64)
    save_file(backbone.state_dict(), folder / "backbone.safetensors")
    return folder


@pytest.fixture(scope="session")
def relative_run(data: Path) -> Path:
    """A short run started in the folder of its data, whose paths are relative to that (relative.yaml)."""
    text = (data / "run.yaml").read_text()
    (data / "relative.yaml").write_text(text.replace(f"{data}/", "").replace("epochs: 3", "epochs: 1"))
    command = [sys.executable, "-m", "puma_plugin.cli.main", "train", "--config", "relative.yaml"]
    options = ["--out", "relative", "--report", "false"]
    subprocess.run([*command, *options], cwd=data, check=True, timeout=200, capture_output=True)
    return data / "relative"


@pytest.fixture(scope="session")
def trained(data: Path) -> Path:
    """The run of the shell command itself. Tests that change something in it take a copy."""
    out = data / "run"
    command = [sys.executable, "-m", "puma_plugin.cli.main", "train", "--config", str(data / "run.yaml")]
    finished = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "harmonic mean" in finished.stdout
    return out
