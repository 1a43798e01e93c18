"""The command as a user starts it: help, version, and mistakes in one line with exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import puma_plugin
from puma_plugin.cli.main import COMMANDS, main


def puma(*arguments: str, folder: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "puma_plugin.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=timeout, check=False)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"puma_plugin {puma_plugin.__version__}\n"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_each_command(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as leaving:
        code = leaving.code
    assert code == 0
    assert f"usage: puma {command}" in capfd.readouterr().out


def test_help_and_version_load_nothing_heavy() -> None:
    program = (
        "import sys; from puma_plugin.cli.main import main; main(['--help']); main(['--version']);"
        "sys.exit(bool({'torch', 'timm', 'pytorch_metric_learning', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly'"),
        (["info", "--what"], "takes no options, got '--what'"),
        (["train"], "data.folders is empty"),
        (["train", "--data.folders.a", "/x", "--epochs", "many"], "epochs"),
        (["train", "--data.folders.a", "/x", "--model.drop", "2"], "model.drop is 2.0"),
        (["train", "--data.folders.a", "/no/such/folder"], "distribution a: /no/such/folder is no folder"),
        (["train", "--data.folders.a", "/x", "--whatever"], "--whatever"),
        (["train", "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["evaluate", "--data.folders.a", "/x"], "checkpoint"),
        (["demo", "--all", "--seed", "1"], "--seed is for the short demo"),
        (["demo", "--train.data.domain", "tuning"], "leave it at benchmark"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PUMA_TRACEBACK", raising=False)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("puma")
    assert list(tmp_path.iterdir()) == [], "a refused command left files"


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUMA_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"data\.folders is empty"):
        main(["train"])


def test_exit_code_of_the_process() -> None:
    finished = puma("train")
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "puma_plugin", "datasets", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_warnings_are_sentences(tmp_path: Path) -> None:
    """Without the line of our code that they come from."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / "own" / "birds" / name).mkdir(parents=True)
        for index in range(1 if name == "a" else 2):
            Image.new("RGB", (8, 8)).save(tmp_path / "own" / "birds" / name / f"{index}.png")
    own = ["--data.root", str(tmp_path / "own"), "--data.small_classes", "skip"]
    finished = puma("train", "--dry-run", *own, "--model.backbone", "embedded", "--device", "cpu")
    (line,) = [line for line in finished.stderr.splitlines() if "left out" in line]
    assert line.startswith("puma train: warning: birds: 1 of 4 classes have fewer than 2 images and are left out")
    assert "sources.py" not in finished.stderr
