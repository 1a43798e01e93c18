"""`torchrun -m puma_plugin ...`: any number of processes gives the run of one, and what is killed can go on."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from puma_plugin.cli.main import main

STEPS = 50
ROOT = Path(__file__).parents[3]
SETTINGS = """
data: {{root: {data}, validation_fraction: 0.0, image_size: 64, workers: 0}}
model: {{backbone: test_vit.r160_in1k, weights: none, adapter_dim: 8, pool_size: 4, prompt_length: 2,
         embedding_size: 16, scale: 1.0}}
optimizer: {{lr: 1.0e-3, proxy_lr: 0.1}}
epochs: {steps}
# Of 36 training images: one step per epoch, so that the history holds the loss of every step.
global_batch_size: 24
device: cpu
threads: 1
report: false
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two distributions of 3 training and 3 test classes, real PNG files; 37 test images, an odd number."""
    folder = tmp_path_factory.mktemp("processes")
    generator = np.random.default_rng(0)
    for distribution in ("up", "down"):
        for number in range(6):
            place = folder / "data" / distribution / f"class{number}"
            place.mkdir(parents=True)
            colour = generator.integers(116, 140, 3)
            for index in range(7 if (distribution, number) == ("up", 5) else 6):
                pixels = np.clip(colour + generator.normal(0, 40, (40, 44, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    file = folder / "run.yaml"
    file.write_text(SETTINGS.format(data=folder / "data", steps=STEPS))
    return file


def start(settings: Path, out: Path, processes: int, *more: str, command: str = "train") -> subprocess.Popen[str]:
    """The shell command: plain for one process, under torchrun for several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [*(launcher if processes > 1 else []), "-m", "puma_plugin", command]
    arguments = ["--config", str(settings), "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, *words, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(settings: Path, out: Path, processes: int, *more: str, command: str = "train") -> str:
    running = start(settings, out, processes, *more, command=command)
    text = running.communicate(timeout=900)[0]
    assert running.returncode == 0, text
    return text


def losses(out: Path) -> list[float]:
    history = json.loads((out / "metrics.json").read_text())["runs"][0]["history"]
    return [entry["metric_loss"] for entry in history]


@pytest.fixture(scope="module")
def alone(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, 50 steps with gates, random crops and flips."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run(settings, out, 1)
    assert len(losses(out)) == STEPS
    return out


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, []),
        # Shares of 6 images each, in two pieces of 3: the loss is still that of the 24 images.
        pytest.param(4, ["--max_batch_per_process", "4"], marks=pytest.mark.slow),
        pytest.param(2, ["--compile", "true"], marks=pytest.mark.slow),
    ],
)
def test_curve_and_figures_are_those_of_one_process(
    settings: Path, alone: Path, tmp_path: Path, processes: int, options: list[str]
) -> None:
    text = run(settings, tmp_path / "run", processes, *options)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=0, atol=1e-4)
    # One process talks and writes.
    assert text.count("results in") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in alone.iterdir()}
    ours, theirs = (json.loads((out / "metrics.json").read_text()) for out in (tmp_path / "run", alone))
    assert (ours["processes"], theirs["processes"]) == (processes, 1)
    found, expected = (metrics["runs"][0]["result"]["unified"] for metrics in (ours, theirs))
    assert found == pytest.approx(expected, abs=0.05)


# Small gradients and small steps: no scaled gradient overflows, and the curve does not multiply differences. With the
# settings above fp16's last place moves the twelfth loss by up to a tenth, on each kind of processor another way.
CALM = ["--loss.arguments", '{"scale": 0.1}', "--model.scale", "0.1", "--optimizer.lr", "3e-4"]


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_mixed_precision(settings: Path, tmp_path: Path, precision: str) -> None:
    common = ["--precision", precision, "--epochs", "12", *CALM]
    run(settings, tmp_path / "two", 2, *common)
    run(settings, tmp_path / "one", 1, *common)
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert max(expected) - min(expected) > 0.05
    # Rounding that depends on the share: 0.0005 at most, on any instruction set. Gradients of one share only: 0.016.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.002)
    states = [torch.load(tmp_path / out / "checkpoint.pt", weights_only=True)["scaler"] for out in ("two", "one")]
    assert states[0] == states[1]
    assert bool(states[0]) == (precision == "fp16")


def test_steps_that_overflow_are_left_out_by_all_processes(settings: Path, tmp_path: Path) -> None:
    """Which ones, may depend on the number of processes: in fp16 each sums the gradients of its own images."""
    common = ["--precision", "fp16", "--epochs", "12"]
    run(settings, tmp_path / "trained", 2, *common)
    state = torch.load(tmp_path / "trained" / "checkpoint.pt", weights_only=True)
    assert 0 < state["optimizers"]["trunk_optimizer"]["state"][0]["step"] < 12
    # What was trained is evaluated with the weights of every process, the checkpoint with those of the first.
    common += ["--checkpoint", str(tmp_path / "trained")]
    run(settings, tmp_path / "evaluated", 2, *common, command="evaluate")
    assert result(tmp_path / "trained") == result(tmp_path / "evaluated")


def curves(out: Path) -> list[list[float]]:
    """The loss of every epoch as the checkpoints hold it: one curve, or one for each of the separate models."""
    states = [torch.load(path, weights_only=True) for path in sorted(out.glob("checkpoint*.pt"))]
    return [[entry["metric_loss"] for entry in state["progress"]["history"]] for state in states]


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())["runs"][0]["result"]


OTHERS = ["adapters", "adaptformer", "full", "vpt_shallow", "vpt_deep", "linear", "frozen"]


@pytest.mark.parametrize(
    "method", ["lora", "separate", *(pytest.param(method, marks=pytest.mark.slow) for method in OTHERS)]
)
def test_every_method_trains_and_evaluates_as_in_one_process(settings: Path, tmp_path: Path, method: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    common = ["--config", str(settings), "--model.method", method, "--epochs", "6"]
    assert main(["train", *common, "--out", str(one)]) == 0
    assert run(settings, two, 2, *common).count("results in") == 1
    files = {path.name for path in two.iterdir()}
    assert files == {path.name for path in one.iterdir()}
    checkpoints = {"frozen": [], "separate": ["checkpoint-part0.pt", "checkpoint-part1.pt"]}
    assert sorted(name for name in files if name.endswith(".pt")) == checkpoints.get(method, ["checkpoint.pt"])
    assert [len(curve) for curve in curves(two)] == {"frozen": [], "separate": [6, 6]}.get(method, [6])
    np.testing.assert_allclose(curves(two), curves(one), rtol=0, atol=1e-4)
    # The same weights: two processes embed 19 and 18 of the 37 images, each once.
    common += ["--checkpoint", str(two)]
    assert main(["evaluate", *common, "--out", str(tmp_path / "evaluated")]) == 0
    text = run(settings, tmp_path / "shared", 2, *common, command="evaluate")
    assert text.count("harmonic mean") == text.count("results in") == 1
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"metrics.json"}
    assert result(tmp_path / "shared") == result(tmp_path / "evaluated")
    assert result(two)["num_queries"] == {"down": 18, "up": 19}
    assert 0.0 < result(two)["harmonic_mean"]["map_at_r"] < 1.0


def workers_of(launcher: int) -> dict[str, int]:
    """Rank -> process id."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        found.update({entry.removeprefix("RANK="): int(pid) for entry in environment if entry.startswith("RANK=")})
    return found


def workers_after_a_checkpoint(running: subprocess.Popen[str], out: Path) -> dict[str, int]:
    deadline = time.monotonic() + 300
    while not (out / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    return workers_of(running.pid)


@pytest.fixture
def killed(settings: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of a run of two processes of which one was killed after a checkpoint, of which every step has one."""
    out = tmp_path / "killed"
    running = start(settings, out, 2, "--checkpoint_minutes", "0")
    try:
        workers = workers_after_a_checkpoint(running, out)
        os.kill(workers["1"], signal.SIGKILL)
        killed_at = time.monotonic()
        text = running.communicate(timeout=60)[0]
        assert time.monotonic() - killed_at < 60
        assert running.returncode != 0
        assert "SIGKILL" in text
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())
        assert not (out / "metrics.json").exists()
        assert not list(out.glob("*.tmp"))
        yield out
    finally:
        if running.poll() is None:
            running.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
def test_killed_process_ends_all_and_another_number_goes_on(settings: Path, alone: Path, killed: Path) -> None:
    done = torch.load(killed / "checkpoint.pt", weights_only=True)["progress"]["global_step"]
    assert 0 < done < STEPS
    run(settings, killed, 1, "--resume", "--data.workers", "1", "--max_batch_per_process", "10")
    np.testing.assert_allclose(losses(killed), losses(alone), rtol=0, atol=1e-4)


SMALL_BATCHES = ["--global_batch_size", "4", "--epochs", "6"]  # of 9 steps


@pytest.fixture(scope="module")
def alone_in_small_batches(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(settings, out, 1, *SMALL_BATCHES)
    return out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
@pytest.mark.parametrize("to", ["launcher", "1"])
def test_a_signal_stops_all_processes_after_the_same_step(
    settings: Path, alone_in_small_batches: Path, tmp_path: Path, to: str
) -> None:
    """Whether it reaches all of them, as a scheduler sends it, or only one: the step at hand is kept."""
    out = tmp_path / "stopped"
    running = start(settings, out, 2, *SMALL_BATCHES)
    workers = workers_after_a_checkpoint(running, out)
    os.kill(running.pid if to == "launcher" else workers[to], signal.SIGTERM)
    text = running.communicate(timeout=60)[0]
    assert running.returncode != 0
    assert text.count("a checkpoint is in") <= 1
    if to == "launcher":
        assert text.count("stopping after this step\n") == text.count("the same command with --resume goes on") == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())
    progress = torch.load(out / "checkpoint.pt", weights_only=True)["progress"]
    assert 9 < progress["global_step"] < 54
    assert progress["global_step"] == 9 * (progress["epoch"] - 1) + progress["iteration"]
    run(settings, out, 1, *SMALL_BATCHES, "--resume")
    np.testing.assert_allclose(losses(out), losses(alone_in_small_batches), rtol=0, atol=1e-4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
@pytest.mark.parametrize("stopped", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_hung_process_is_named_when_the_time_is_up(settings: Path, tmp_path: Path, stopped: str) -> None:
    running = start(settings, tmp_path / "run", 2, "--epochs", "5000", "--process_timeout", "10")
    workers = workers_after_a_checkpoint(running, tmp_path / "run")
    os.kill(workers[stopped], signal.SIGSTOP)
    stopped_at = time.monotonic()
    said = []
    assert running.stdout is not None
    for line in running.stdout:
        said.append(line)
        if "error: " in line:
            break
    took = time.monotonic() - stopped_at
    with contextlib.suppress(ProcessLookupError):
        os.kill(workers[stopped], signal.SIGKILL)  # torchrun would wait half a minute for it
    rest = running.communicate(timeout=60)[0]
    everything = "".join([*said, rest])
    assert 10 <= took < 60, everything
    message = f"puma train: error: no answer from process {stopped} (pid {workers[stopped]} on "
    assert said[-1].startswith(message), everything
    assert "within process_timeout, 10 seconds" in said[-1]
    assert running.returncode != 0
    assert "puma train: error" not in rest


def place(rank: int, port: int = 0) -> dict[str, str]:
    """What torchrun tells a process, here one of two machines' single processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def test_process_that_never_joins(settings: Path, tmp_path: Path) -> None:
    """One of two processes, started without the other."""
    arguments = ["--config", str(settings), "--out", str(tmp_path / "run"), "--process_timeout", "2"]
    finished = subprocess.run(
        [sys.executable, "-m", "puma_plugin", "train", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **place(0)},
        timeout=120,
        check=False,
    )
    assert finished.returncode == 2
    assert re.search(r"process 0 of 2 could not join the others \(process_timeout is 2 seconds\)", finished.stderr)
    assert not (tmp_path / "run").exists()


def on_two_machines(
    settings: Path, *more: list[str], command: str = "train", paths: Sequence[Path] = (ROOT, ROOT)
) -> list[str]:
    """What the two say that are started with these arguments, each on a machine of its own, and fail together.

    Args:
        paths: where each finds the package.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "puma_plugin", command, "--config", str(settings), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            cwd=paths[rank],
            env={**os.environ, **place(rank, port), "PYTHONPATH": str(paths[rank])},
        )
        for rank, arguments in enumerate(more)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2], said
    return said


def test_machines_without_a_common_file_system_cannot_go_on(settings: Path, killed: Path, tmp_path: Path) -> None:
    """The second machine would begin anew, where the first goes on."""
    first, second = on_two_machines(
        settings, ["--out", str(killed), "--resume"], ["--out", str(tmp_path / "here"), "--resume"]
    )
    assert re.search(
        r"checkpoint\.pt: process 1 on \S+ finds none there, unlike the first process; out must be on", first
    )
    assert "Traceback" not in first + second
    assert not (tmp_path / "here").exists()


def test_machines_do_not_evaluate_different_weights(settings: Path, alone: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes((alone / "model.safetensors").read_bytes()[:-1] + b"?")
    checkpoints = (["--checkpoint", str(path)] for path in (alone / "model.safetensors", other))
    first, second = on_two_machines(settings, *checkpoints, command="evaluate")
    assert re.search(r"process 1 on \S+ finds another one there, unlike the first process; --checkpoint must", first)
    assert "Traceback" not in first + second


def test_machines_that_were_given_different_commands(settings: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    first, second = on_two_machines(settings, [*out, "--seed", "3"], [*out, "--resume", "--threads", "1"])
    assert (
        "process 1 was started with other settings or versions than the first one: seed 0, not 3; --resume 'yes', not "
        "'no'" in first
    )
    assert "Traceback" not in first + second
    assert not (tmp_path / "run").exists()


def test_machines_with_different_code(settings: Path, tmp_path: Path) -> None:
    """The second has a loss of its own."""
    package = tmp_path / "other" / "puma_plugin"
    shutil.copytree(ROOT / "puma_plugin", package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "losses" / "curricular_face_loss.py"
    file.write_text(file.read_text() + "\n")
    out = ["--out", str(tmp_path / "run")]
    first, second = on_two_machines(settings, out, out, paths=[ROOT, tmp_path / "other"])
    different = r"with other settings or versions than the first one: versions\.sources of puma_plugin '\w+', not '\w+'"
    assert re.search(different, first)
    assert "Traceback" not in first + second
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, where a launcher such as torchrun puts"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment, .* a whole number from 1; start with torchrun"),
        ({"RANK": "x"}, "RANK is 'x' in the environment"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT is 'abc' in the environment"),
    ],
)
def test_variables_that_no_launcher_gives(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "puma_plugin", "train", "--data.kind", "embedded", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **place(0), **changes},
        timeout=120,
        check=False,
    )
    assert finished.returncode == 2
    assert re.search(f"puma train: error: {message}", finished.stderr)
    assert "Traceback" not in finished.stderr


def test_a_port_that_another_program_uses(settings: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = subprocess.run(
            [sys.executable, "-m", "puma_plugin", "train", "--config", str(settings), "--out", str(tmp_path / "run")],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **place(0, port)},
            timeout=120,
            check=False,
        )
    assert finished.returncode == 2
    assert f"another program uses port {port}; give another one, torchrun --master-port" in finished.stderr


def test_a_launcher_that_starts_again_goes_on(settings: Path, alone: Path, tmp_path: Path) -> None:
    """torchrun --max-restarts gives the same command again, and its store still has the addresses of the dead."""
    out = tmp_path / "again"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    arguments = ["--config", str(settings), "--out", str(out), "--resume", "auto", "--checkpoint_minutes", "0"]
    running = subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "puma_plugin", "train", *arguments, "--process_timeout", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    os.kill(workers_after_a_checkpoint(running, out)["1"], signal.SIGKILL)
    text = running.communicate(timeout=200)[0]
    assert running.returncode == 0, text
    assert "goes on from step" in text
    np.testing.assert_allclose(losses(out), losses(alone), rtol=0, atol=1e-4)


@pytest.fixture
def two_hosts() -> Iterator[list[tuple[str, str]]]:
    """(network namespace, its interface) of two hosts with a network between them; the first is 10.87.0.1."""
    names = [f"puma{os.getpid()}{letter}" for letter in "ab"]
    links = [f"{name}v"[-15:] for name in names]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {links[0]} netns {names[0]} type veth peer name {links[1]} netns {names[1]}")
    for number, (name, link) in enumerate(zip(names, links, strict=True), start=1):
        commands += [f"-n {name} addr add 10.87.0.{number}/24 dev {link}"]
        commands += [f"-n {name} link set {device} up" for device in (link, "lo")]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"ip {command}: {done.stderr.strip()}")
        yield list(zip(names, links, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start_on_hosts(hosts: list[tuple[str, str]], settings: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """torchrun on each of them, as on two machines with a common file system."""
    launcher = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=10.87.0.1"]
    train = ["--master-port=29507", "-m", "puma_plugin", "train", "--config", str(settings), *arguments]
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", *launcher, f"--node-rank={number}", *train],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": link},
        )
        for number, (name, link) in enumerate(hosts)
    ]


needs_hosts = pytest.mark.skipif(
    shutil.which("ip") is None or os.geteuid() != 0, reason="needs iproute2 and the right to make networks"
)


@needs_hosts
@pytest.mark.slow
def test_two_hosts_have_the_curve_of_one_process(
    two_hosts: list[tuple[str, str]], settings: Path, alone: Path, tmp_path: Path
) -> None:
    started = start_on_hosts(two_hosts, settings, "--out", str(tmp_path / "run"))
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=0, atol=1e-4)


@needs_hosts
@pytest.mark.slow
def test_a_network_that_breaks_ends_both_hosts(
    two_hosts: list[tuple[str, str]], settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    more = ["--epochs", "5000", "--process_timeout", "10", "--out", str(out)]
    started = start_on_hosts(two_hosts, settings, *more)
    workers_after_a_checkpoint(started[0], out)
    name, link = two_hosts[1]
    subprocess.run(["ip", "-n", name, "link", "set", link, "down"], check=True)
    for process in started:
        said = process.communicate(timeout=90)[0]
        assert process.returncode != 0
        assert "puma train: error: no answer from process" in said
        assert "cannot be reached over the network" in said


def test_batch_that_cannot_be_shared(settings: Path, tmp_path: Path) -> None:
    running = start(settings, tmp_path / "run", 2, "--global_batch_size", "15")
    text = running.communicate(timeout=300)[0]
    assert running.returncode != 0
    assert "a batch of 15 images" in text
    assert "set global_batch_size to 14" in text
    assert not (tmp_path / "run").exists()


def test_one_message_for_data_that_cannot_be_read(settings: Path, tmp_path: Path) -> None:
    running = start(settings, tmp_path / "run", 2, "--data.root", str(tmp_path / "nowhere"))
    text = running.communicate(timeout=300)[0]
    assert running.returncode != 0
    assert text.count("puma train: error: data.root is") == 1


def test_one_message_for_what_every_process_finds(settings: Path, tmp_path: Path) -> None:
    more = ["--checkpoint", str(tmp_path / "nothing")]
    running = start(settings, tmp_path / "run", 2, *more, command="evaluate")
    text = running.communicate(timeout=300)[0]
    assert running.returncode != 0
    assert text.count("puma evaluate: error") == text.count("is no file; give the folder of a run that has ended") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_diverging_run_names_the_images_of_all_processes_once(settings: Path, tmp_path: Path) -> None:
    running = start(settings, tmp_path / "run", 2, "--optimizer.lr", "1e30", "--optimizer.clip", "null")
    text = running.communicate(timeout=300)[0]
    assert running.returncode != 0
    assert text.count("puma train: error: training diverged in epoch 2") == text.count("puma train: error") == 1
    listed = text.partition("Items of the batch: ")[2].partition(". ")[0].split(", ")
    assert len(set(listed)) == len(listed) == 24


@pytest.mark.parametrize(
    ("command", "more"), [("compare", ["compare"]), ("demo", []), ("train", ["--dry-run", "--data.kind", "embedded"])]
)
def test_commands_of_one_process(
    command: str, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torchrun starts them: the first process refuses in one sentence, the others leave it to that one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main([command, *more]) == 2
    assert "was started as 2 processes, but" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as left:
        main([command, *more])
    assert left.value.code == 0
    assert capsys.readouterr().err == ""
