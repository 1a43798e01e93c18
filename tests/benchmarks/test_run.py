"""One small run of the whole command, the joining of processes, and peak memory."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import machine, run
from benchmarks.machine import commit_of_all, last_level_cache_bytes, machine_slug
from benchmarks.memory import MemoryPlan, measure
from benchmarks.process import measurable
from benchmarks.reporting.results import load_results
from benchmarks.run import main, merge, result_name
from benchmarks.session import BenchSession
from benchmarks.settings import EFFORTS, Settings, choose_device
from benchmarks.subjects.adapter import EAGER, AdapterCase
from benchmarks.subjects.sampling import SamplingCase
from benchmarks.subjects.workload import MAX_COPIES, number_of_copies
from benchmarks.suites import conftest


def test_smoke_run_writes_results_tables_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # The command starts a pytest of its own, which must not take itself for a worker of this one.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    what = ["--effort", "smoke", "--suites", "ceilings", "adapter", "--no-compiled"]
    assert main([*what, "--malloc", "raised", "--device", "cpu", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    results = load_results(path)
    comparisons = list(results.comparisons("adapter"))
    assert [entry.mode for entry in comparisons] == ["forward", "backward", "both"]
    for entry in comparisons:
        assert tuple(entry.rows["malloc_raised"]) == EAGER
        assert all(len(row.samples) == 3 and min(row.samples) > 0 for row in entry.shown.values())
        assert entry.shown["ours"].limit is not None
    assert {row.contestant for row in results.rows if row.subject == "ceilings"} == {
        "copy", "matmul_float32", "convolution_float32", "matmul_bfloat16", "convolution_bfloat16"
    }  # fmt: skip
    assert results.machine["threads"] == 1
    assert results.machine["versions"]["torch"] == torch.__version__.split("+")[0]
    # pytest-benchmark computed the same median from the samples that it was handed.
    for entry, row in zip(json.loads(path.read_text())["benchmarks"], results.rows, strict=True):
        assert entry["stats"]["median"] == pytest.approx(row.median)
    assert "### Stochastic adapter" in path.with_suffix(".md").read_text()
    assert (tmp_path / f"{path.stem}-plots" / "ratios.svg").exists()
    assert not (tmp_path / "plots").exists()  # those of a chosen run


@pytest.mark.parametrize("suites", [["memory"], ["memory", "ceilings"]])
def test_every_process_has_a_timing_as_pytest_benchmark_writes_no_file_without(
    suites: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(run, "run_process", lambda command, _: commands.append(command) or 0)
    run.measure(suites, "smoke", "cpu", "default", no_compiled=True)
    files = [Path(word).name for word in commands[0] if word.endswith(".py")]
    assert sorted(files) == ["bench_ceilings.py", "bench_memory.py"]


def test_a_suite_without_cases_is_said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Host overhead does not depend on the allocator's thresholds and is measured with one setting of them."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    code, result = run.measure(["overhead"], "smoke", "cpu", "raised", no_compiled=True)
    assert code == 0
    assert result is not None
    assert {entry["extra_info"]["subject"] for entry in result["benchmarks"]} == {"ceilings"}
    assert "overhead: nothing to measure with effort smoke (malloc_raised)\n" in capfd.readouterr().out


@pytest.mark.slow
def test_a_failure_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled contestant has no compiler."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    what = ["--effort", "smoke", "--suites", "prompts", "--malloc", "raised", "--device", "cpu"]
    assert main([*what, "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("*.json")
    failed = load_results(path).failures
    assert failed
    assert all("compiled" in failure["test"] for failure in failed)
    assert "### Failed" in path.with_suffix(".md").read_text()


def test_a_suite_that_is_broken_does_not_stop_the_others_and_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "pytorch_metric_learning.py").write_text("raise ImportError('broken on purpose')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    what = ["--effort", "smoke", "--suites", "sampling", "overhead", "growth", "--malloc", "default", "--device", "cpu"]
    assert main([*what, "--out", str(tmp_path / "out")]) == 1
    (path,) = (tmp_path / "out").glob("*.json")
    results = load_results(path)
    assert {row.subject for row in results.rows} == {"ceilings", "overhead"}
    assert sorted(failure["test"] for failure in results.failures) == ["bench_growth.py", "test_subject[sampling]"]
    assert all("broken on purpose" in failure["error"] for failure in results.failures)


def test_processes_are_joined() -> None:
    lists = ({"benchmarks": [1], "memory": []}, {"benchmarks": [4], "memory": [5]})
    others = ({"failures": [8], "ceilings": [2], "settings": [3]}, {"failures": [9], "ceilings": [6], "settings": [7]})
    parts = [{"machine_info": {"cpu": "x"}, **one, **other} for one, other in zip(lists, others, strict=True)]
    merged = merge(parts)
    assert merged["benchmarks"] == [1, 4]
    assert (merged["memory"], merged["failures"]) == ([5], [8, 9])
    assert (merged["ceilings"], merged["settings"]) == ([2, 6], [3, 7])


def test_the_commit_is_the_one_that_a_run_began_with() -> None:
    assert commit_of_all(["a", "a"]) == "a"
    assert commit_of_all(["a", "b"]) == "a+changes"
    assert commit_of_all(["a", "a+changes"]) == "a+changes"
    assert commit_of_all(["a+changes", "b"]) == "a+changes"
    assert commit_of_all([None, None]) is None
    part = {name: [] for name in run.LISTS}
    merged = merge([{**part, "machine_info": {"commit": name}} for name in ("a", "b")])
    assert merged["machine_info"]["commit"] == "a+changes"


def test_a_commit_in_the_middle_of_a_run_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(EFFORTS["smoke"], "cpu", "default")
    config = SimpleNamespace(stash={conftest.SESSION: BenchSession(settings), conftest.MACHINE: {"commit": "a"}})
    monkeypatch.setattr(conftest, "commit", lambda: "b")
    assert conftest.pytest_benchmark_generate_machine_info(config)["commit"] == "a+changes"


def test_names() -> None:
    result = {"datetime": "2026-01-31T16:30:00+01:00", "machine_info": {"commit": "0123abcdef+changes"}}
    assert result_name(result, "quick") == "2026-01-31-1530-0123abc+-quick"
    machine = {"cpu": "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz", "cores": 16, "gpu": "NVIDIA H200"}
    assert machine_slug(machine) == "intel-xeon-platinum-8480-16-cores-nvidia-h200"
    machine = {"cpu": "AMD EPYC 9354 32-Core Processor", "cores": 2, "gpu": None}
    assert machine_slug(machine) == "amd-epyc-9354-32-core-2-cores"


def test_two_runs_of_the_same_minute_keep_both_files(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = run.free_path(tmp_path, "2026-01-31-1530-0123abc-quick")
        path.touch()
        names.append(path.name)
    assert names == [f"2026-01-31-1530-0123abc-quick{number}.json" for number in ("", "-2", "-3")]


def test_interrupted_before_anything_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", interrupted)
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 130
    assert "no result file is written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_run_leaves_no_process_that_goes_on_measuring(tmp_path: Path) -> None:
    child = tmp_path / "child"
    measuring = (
        f"import os, pathlib, time; pathlib.Path({str(child)!r} + '-').write_text(str(os.getpid())); "
        f"os.rename({str(child)!r} + '-', {str(child)!r}); time.sleep(60)"
    )
    command = (
        "import os, sys; from benchmarks.run import run_process; "
        f"run_process([sys.executable, '-c', {measuring!r}], os.environ)"
    )
    process = subprocess.Popen([sys.executable, "-c", command], cwd=run.ROOT)
    deadline = time.monotonic() + 60
    while not child.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)


def test_a_folder_that_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("measured first"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        main(["--device", "cpu", "--out", str(tmp_path / "file")])
    assert caught.value.code == 2
    assert "--out must be a folder that can be written to" in capsys.readouterr().err


def test_without_pytest_benchmark_the_command_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "pytest_benchmark" else object())
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "pytest-benchmark must be installed: pip install pytest-benchmark" in capsys.readouterr().err


def test_operators_older_than_their_sources_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "csrc" / "cpu"
    sources.mkdir(parents=True)
    for path, seconds in ((tmp_path / "_C.abi3.so", 200), (sources / "old.cpp", 100), (sources / "new.cpp", 300)):
        path.touch()
        os.utime(path, (seconds, seconds))
    monkeypatch.setattr(machine, "PACKAGE", tmp_path)
    monkeypatch.setattr(machine, "SOURCES", tmp_path / "csrc")
    assert machine.machine_info("cpu")["changed_since_the_build"] == ["new.cpp"]
    run.warn_if_stale()
    assert "older than new.cpp" in capsys.readouterr().err
    (sources / "new.cpp").unlink()
    run.warn_if_stale()
    assert capsys.readouterr().err == ""


def test_inputs_exceed_the_last_level_cache() -> None:
    cache = last_level_cache_bytes("cpu")
    assert cache >= 1 << 20
    assert number_of_copies(10 * cache, "cpu") == 2
    assert number_of_copies(cache // 4, "cpu") == 8
    assert number_of_copies(1, "cpu") == MAX_COPIES


def test_unknown_and_missing_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            choose_device("cuda")
        assert choose_device("auto") == "cpu"


@pytest.mark.skipif(not measurable(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_memory_of_the_authors_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what has to be alive at the end (output, gradients) and everything that is ever made."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    case = AdapterCase(32, 64, 256, 16)
    peak = measure(MemoryPlan("adapter", case, "both", "authors", whole=False), "cpu")
    tensor = 32 * 64 * 256 * 4
    assert 2 * tensor <= peak <= 14 * tensor


@pytest.mark.skipif(not measurable(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_memory_of_a_sampler_holds_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    case = SamplingCase("million_items", 512, 0.2)
    peak = measure(MemoryPlan("sampling", case, "first_batch", "shuffle", whole=True), "cpu")
    # Labels of two int64, a permutation as tensor and as list of Python ints: 16 + 8 + 8 + 32 bytes an item.
    assert 0.9 * 64 * 200_000 <= peak <= 1.5 * 64 * 200_000


@pytest.mark.slow
def test_a_failing_process_says_why() -> None:
    plan = MemoryPlan("adapter", AdapterCase(2, 3, 8, 4), "both", "nobody", whole=False)
    with pytest.raises(RuntimeError, match=r"adapter-B2.*nobody"):
        measure(plan, "cpu")
