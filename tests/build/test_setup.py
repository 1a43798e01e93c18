"""What a build says that cannot be done, and what a source distribution holds."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import puma_plugin
from puma_plugin._cuda_toolkit import candidate_homes, find_toolkits

ROOT = Path(puma_plugin.__file__).resolve().parents[1]


def setup(
    arguments: list[str], folder: Path = ROOT, code: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run setup.py, after ``code``."""
    script = f"import sys; sys.argv[0] = 'setup.py'; __file__ = 'setup.py'; {code}\nexec(open('setup.py').read())"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, "PUMA_CUDA": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_missing_compiler_is_said_in_one_line(tmp_path: Path) -> None:
    for compiler in ("false", "no-such-compiler"):
        done = setup(["build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)], CXX=compiler)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1
        assert last.startswith(f"error: puma_plugin needs a C++17 compiler, and {compiler} --version does not work (")
        assert last.endswith("or set CXX to it")
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not find_toolkits(candidate_homes(os.environ)), reason="needs an nvcc")
def test_an_unknown_architecture_is_said_in_one_line(tmp_path: Path) -> None:
    arguments = ["build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    done = setup(arguments, PUMA_CUDA="auto", TORCH_CUDA_ARCH_LIST="Ampera")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: TORCH_CUDA_ARCH_LIST is 'Ampera' (Unknown CUDA arch")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_the_build_needs_is_named() -> None:
    done = setup(["--version"], code="sys.modules['pybind11'] = None")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "puma_plugin: the build needs pybind11, which is not in this environment: pip install"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("mode", "code", "sentence"),
    [
        ("yes", "", "puma_plugin: PUMA_CUDA must be auto, 0 or 1, got 'yes'"),
        ("1", "import torch; torch.version.cuda = None", "puma_plugin: PUMA_CUDA=1, but the CUDA operators cannot be "),
        (
            "0",
            "import torch; torch.__version__ = '2.9.1+cu128'",
            "puma_plugin: the build needs torch >= 2.10, got 2.9.1",
        ),
        (
            "0",
            "import setuptools; setuptools.__version__ = '65.5.0'",
            "puma_plugin: the build needs setuptools >= 77, got",
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(mode: str, code: str, sentence: str) -> None:
    done = setup(["--version"], code=code, PUMA_CUDA=mode)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


def test_the_source_distribution_holds_what_the_build_needs_and_no_test(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "csrc", "puma_plugin", "tests"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    done = setup(["-q", "sdist", "--dist-dir", "made"], tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "made").iterdir()
    assert made.name == f"puma_plugin-{puma_plugin.__version__}.tar.gz"
    with tarfile.open(made) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    wanted += [
        "setup.py",
        "LICENSE",
        "puma_plugin/_cuda_toolkit.py",
        "puma_plugin/py.typed",
        "puma_plugin/configs/paper.yaml",
    ]
    wanted += ["puma_plugin/datasets/embedded/backbone.safetensors", "puma_plugin/experiments/comparing/recorded.json"]
    assert set(wanted) <= held
    assert not [name for name in held if name.startswith("tests")]
