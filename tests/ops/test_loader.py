"""What happens where a compiled library is missing, too old or broken."""

import ctypes
import importlib.util
import os
import subprocess
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import puma_plugin
from puma_plugin.ops import loader, match_prompts, reference, stochastic_adapter

PACKAGE = Path(puma_plugin.__file__).parent


def test_cpu_library_is_loaded() -> None:
    assert loader.CPU_LIBRARY.loaded, loader.CPU_LIBRARY.reason
    assert loader.CPU_LIBRARY.error is None
    assert loader.CPU_MODULE is not None
    assert loader.CPU_MODULE.cpu_capability() in ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "default")


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    # A test in a process of its own finds the package where this one did.
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=PACKAGE.parent)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512", "avx512_vnni", "avx512_bf16"])
def test_kernels_of_every_instruction_set(capability: str) -> None:
    # Other vector widths, tiles and rests than those that this machine would take by itself.
    here = Path(__file__).parent
    names = ("match_prompts", "nearest_neighbours", "adapter_to_the_last_bit", "packed_attention", "frozen_mlp")
    files = [str(here / f"test_{name}.py") for name in names]
    script = f"""
import sys
from puma_plugin.ops import loader
if not loader.CPU_LIBRARY.loaded:
    sys.exit(loader.CPU_LIBRARY.reason)
assert loader.CPU_MODULE.cpu_capability() == {capability!r}
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k", "not gradcheck", *{files!r}]))
"""
    found = run(script, PUMA_CPU_CAPABILITY=capability)
    if "no more than this machine has" in found.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert found.returncode == 0, found.stdout + found.stderr


def test_instruction_sets_with_fused_multiplication_give_the_same_to_the_last_bit() -> None:
    script = """
import torch
from puma_plugin.ops import loader
if not loader.CPU_LIBRARY.loaded:
    raise SystemExit(loader.CPU_LIBRARY.reason)
generator = torch.Generator().manual_seed(0)
rows = 0.2 + torch.randn(500, 75, generator=generator)
packed = torch.ops.puma.pack_gallery(rows)
for k in (5, 500):
    found = torch.ops.puma.nearest_neighbours(rows[:90], rows, packed, k, *[None] * 4, 0, 500, False)
    print([column.tolist() for column in found])
x, grad = (torch.randn(3, 17, 80, generator=generator) for _ in range(2))
down, up = torch.randn(80, 48, generator=generator), torch.randn(48, 80, generator=generator)
out, *kept = torch.ops.puma.stochastic_adapter(grad, x, down, up, None, None, 0.1, True)
gradients = torch.ops.puma.stochastic_adapter_backward(grad, x, down, up, None, *kept, 0.1, True, False)
print(out.tolist(), gradients[0].tolist())
"""
    names = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
    runs = [run(script, PUMA_CPU_CAPABILITY=name) for name in names]
    found = [each for each in runs if "no more than this machine has" not in each.stderr]
    if len(found) < 2:
        pytest.skip("this machine has at most one of them")
    assert all(each.returncode == 0 for each in found), [each.stderr for each in found]
    assert len({each.stdout for each in found}) == 1


def test_shapes_in_compiled_code_do_not_depend_on_the_instruction_set() -> None:
    # torch keeps compiled code on disk, where a machine with other vectors may find it, and compares shapes with it.
    script = """
import torch
from puma_plugin.ops import loader
if not loader.CPU_LIBRARY.loaded:
    raise SystemExit(loader.CPU_LIBRARY.reason)
x, fc1, fc2 = (torch.ones(shape) for shape in ((600, 16), (48, 16), (16, 48)))
mlp, attention = torch.ops.puma.frozen_mlp, torch.ops.puma.packed_attention
with_slopes, without = (mlp(x, fc1, None, fc2, None, save) for save in (True, False))
results = [*with_slopes, *without, *attention(x.view(1, 200, 3, 1, 16), 1.0)]
print([tensor.shape for tensor in results])
"""
    runs = [run(script, PUMA_CPU_CAPABILITY=name) for name in ("avx2", "avx512", "amx")]
    found = [each for each in runs if "no more than this machine has" not in each.stderr]
    if len(found) < 2:
        pytest.skip("this machine has at most one of them")
    assert all(each.returncode == 0 for each in found), [each.stderr for each in found]
    assert len({each.stdout for each in found}) == 1


def test_an_unknown_instruction_set_is_refused_with_the_known_ones() -> None:
    script = "import puma_plugin.ops.loader as l; print(l.CPU_LIBRARY.reason, l.CPU_LIBRARY.can_be_compiled)"
    found = run(script, PUMA_CPU_CAPABILITY="sse9")
    assert "PUMA_CPU_CAPABILITY must be default, avx2, avx512, avx512_vnni, avx512_bf16 or amx" in found.stdout
    assert found.stdout.endswith("got sse9 False\n")


@pytest.mark.parametrize(
    ("version", "old"), [("2.9.1+cu128", True), ("2.10.0", False), ("2.10.0a0+git1", False), ("3.0", False)]
)
def test_oldest_torch(version: str, old: bool) -> None:
    reason = loader.torch_too_old(version)
    assert bool(reason) == old
    assert not old or ("2.10" in reason and version in reason)


def test_no_library_is_loaded_into_a_torch_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    state, module = loader.load_cpu_library()
    assert (state.loaded, module) == (False, None)
    assert state.reason.startswith("torch 2.9.1 is too old")


def test_innermost_cause_is_shown() -> None:
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("Could not load this library") from OSError("undefined symbol: xyz")
    assert loader.true_cause(caught.value) == "OSError: undefined symbol: xyz"


def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `git pull` without a new build: its operators may take other arguments."""
    monkeypatch.setattr(loader, "SCHEMAS", loader.SCHEMAS + 1)
    state, module = loader.load_cpu_library()
    assert (state.loaded, module) == (False, None)
    assert "compiled from other sources" in state.reason
    if importlib.util.find_spec("puma_plugin._C_cuda") is not None and torch.version.cuda is not None:
        state = loader.load_cuda_library(loader.CPU_LIBRARY)
        assert not state.loaded
        assert "compiled from other sources" in state.reason


@pytest.fixture
def cuda_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the CUDA library is, of a torch with CUDA: an empty file."""
    library = tmp_path / "_C_cuda.so"
    library.touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    specs = {"puma_plugin._C_cuda": ModuleSpec("puma_plugin._C_cuda", None, origin=str(library))}
    monkeypatch.setattr(importlib.util, "find_spec", specs.get)
    return library


@pytest.mark.usefixtures("cuda_library")
def test_what_the_cuda_library_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, broken = loader.LibraryState("_C", True), loader.LibraryState("_C", False, "broken")
    says = "the operators' schemas are in _C, which is not loaded"
    assert loader.load_cuda_library(broken) == loader.LibraryState("_C_cuda", False, says)
    # Not there, or a folder of its name.
    for spec in (None, ModuleSpec("puma_plugin._C_cuda", None)):
        monkeypatch.setattr(importlib.util, "find_spec", {"puma_plugin._C_cuda": spec}.get)
        says = "the library is missing: it was not compiled"
        assert loader.load_cuda_library(loaded) == loader.LibraryState("_C_cuda", False, says)
    monkeypatch.setattr(torch.version, "cuda", None)
    says = f"torch {torch.__version__} is a CPU-only build"
    assert loader.load_cuda_library(loaded) == loader.LibraryState("_C_cuda", False, says)


def test_a_broken_cuda_library_shows_the_linkers_words(cuda_library: Path) -> None:
    state = loader.load_cuda_library(loader.LibraryState("_C", True))
    assert (state.name, state.loaded) == ("_C_cuda", False)
    assert state.reason == f"OSError: {cuda_library}: file too short"
    assert state.error is not None


def test_another_library_of_that_name_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch, cuda_library: Path) -> None:
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: ctypes.pythonapi)
    state = loader.load_cuda_library(loader.LibraryState("_C", True))
    assert not state.loaded
    assert state.reason.startswith("AttributeError: ")
    assert "undefined symbol: puma_cuda_schemas" in state.reason


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        ([("NVIDIA A100", (8, 0)), ("NVIDIA H200", (9, 0))], ""),
        (
            [("NVIDIA H200", (9, 0)), ("Tesla T4", (7, 5))],
            "Tesla T4 has compute capability 7.5, the CUDA operators need 8.0",
        ),
    ],
)
def test_gpus_that_the_kernels_do_not_run_on(
    monkeypatch: pytest.MonkeyPatch, gpus: list[tuple[str, tuple[int, int]]], reason: str
) -> None:
    monkeypatch.setattr(loader, "CUDA_LIBRARY", loader.LibraryState("_C_cuda", True))
    for name in ("_DEVICES", "KERNEL_DEVICES"):
        monkeypatch.setattr(loader, name, frozenset(["cpu", "meta", "cuda"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: gpus[index][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpus[index][1])
    loader.leave_out_older_gpus()
    assert loader.LibraryState("_C_cuda", not reason, reason, can_be_compiled=not reason) == loader.CUDA_LIBRARY
    assert ("cuda" in loader.KERNEL_DEVICES) == (not reason)
    monkeypatch.setattr(loader, "_warned", set())
    if reason:
        with pytest.warns(RuntimeWarning, match=reason) as warned:
            loader.report_fallback("cuda")
        assert "to fix it" not in str(warned[0].message)  # compiling again would not help
    with loader.plain_pytorch():  # which puts the devices back behind it
        assert not loader.KERNEL_DEVICES
    assert ("cuda" in loader.KERNEL_DEVICES) == (not reason)


@pytest.mark.parametrize(("schemas", "loaded"), [(loader.SCHEMAS, True), (loader.SCHEMAS - 1, False)])
def test_a_cuda_library_must_have_the_same_schemas(
    monkeypatch: pytest.MonkeyPatch, cuda_library: Path, schemas: int, loaded: bool
) -> None:
    library = SimpleNamespace(puma_cuda_schemas=lambda: schemas)
    opened: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", opened.append)
    monkeypatch.setattr(ctypes, "CDLL", {str(cuda_library): library}.get)
    state = loader.load_cuda_library(loader.LibraryState("_C", True))
    assert opened == [str(cuda_library)]
    assert state == loader.LibraryState("_C_cuda", loaded, "" if loaded else loader.OTHER_SOURCES)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "KERNEL_DEVICES", frozenset())
    monkeypatch.setattr(loader, "_DEVICES", frozenset())
    monkeypatch.setattr(loader, "_warned", set())
    monkeypatch.delenv("PUMA_STRICT", raising=False)


@pytest.mark.usefixtures("no_kernels")
def test_fallback_warns_once_and_computes_the_definition() -> None:
    inputs = [torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8, 4), torch.randn(4, 8)]
    prompts = [torch.randn(2, 8), torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 3, 8)]
    with pytest.warns(RuntimeWarning, match=r"no compiled operators for 'cpu'.*plain-PyTorch.*pip install") as warned:
        out = stochastic_adapter(*inputs)
    assert warned[0].filename == __file__  # the line that called the operator
    assert torch.equal(out, reference.stochastic_adapter(*inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stochastic_adapter(*inputs)
        expected = reference.match_prompts(*prompts)
        torch.testing.assert_close(match_prompts(*prompts), expected, rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(match_prompts(*prompts), expected, rtol=0, atol=0)


@pytest.mark.usefixtures("no_kernels")
def test_prompts_warn_too_where_they_come_first() -> None:
    prompts = [torch.randn(2, 8), torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 3, 8)]
    with pytest.warns(RuntimeWarning, match="no compiled operators for 'cpu'"):
        match_prompts(*prompts)


@pytest.mark.usefixtures("no_kernels")
def test_fallback_compiles_without_graph_breaks() -> None:
    inputs = [torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8, 4), torch.randn(4, 8)]
    compiled = torch.compile(lambda *leaves: stochastic_adapter(*leaves), fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        torch.testing.assert_close(compiled(*inputs), reference.stochastic_adapter(*inputs))
    # Compiled code cannot warn; the next call that is not compiled does.
    with pytest.warns(RuntimeWarning, match="no compiled operators"):
        stochastic_adapter(*inputs)


@pytest.mark.usefixtures("no_kernels")
def test_strict_forbids_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUMA_STRICT", "1")
    cause = OSError("undefined symbol: xyz")
    monkeypatch.setattr(loader, "CPU_LIBRARY", loader.LibraryState("_C", False, "broken", cause))
    with pytest.raises(RuntimeError, match=r"\(_C: broken\)\. PUMA_STRICT=1 forbids") as error:
        stochastic_adapter(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.zeros(2, 1), torch.zeros(1, 2))
    assert error.value.__cause__ is cause


@pytest.mark.usefixtures("no_kernels")
def test_other_kinds_of_devices_have_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(RuntimeWarning, match=r"for 'mps' tensors \(there are no kernels for this kind of device\)"):
        loader.report_fallback("mps")
    monkeypatch.setenv("PUMA_STRICT", "1")
    with pytest.raises(RuntimeError, match="no compiled operators for 'xpu' tensors") as error:
        loader.report_fallback("xpu")
    assert error.value.__cause__ is None


@pytest.mark.usefixtures("no_kernels")
def test_meta_tensors_need_no_kernel_and_no_warning() -> None:
    x, down, up = (torch.zeros(size, device="meta") for size in ((2, 3, 8), (8, 4), (4, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stochastic_adapter(x, x, down, up).shape == (2, 3, 8)


LOAD = """
import sys, types
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
package = types.ModuleType("puma_plugin")
package.__path__ = [sys.argv[1]]
sys.modules["puma_plugin"] = package
from puma_plugin.ops import loader
print(loader.CPU_LIBRARY.loaded, loader.CUDA_LIBRARY.loaded, loader.CPU_LIBRARY.reason, sep="|")
"""


def load_copy(folder: Path, library: bytes | None) -> list[str]:
    """The loader's verdict, in a fresh process, on a copy of the Python files with this ``_C``."""
    (folder / "ops").mkdir(parents=True)
    for file in (PACKAGE / "ops").glob("*.py"):
        (folder / "ops" / file.name).write_bytes(file.read_bytes())
    if library is not None:
        suffix = next(PACKAGE.glob("_C.*.so")).name
        (folder / suffix).write_bytes(library)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True, env={**os.environ}
    )
    return run.stdout.strip().splitlines()[-1].split("|")


def test_missing_library_says_so(tmp_path: Path) -> None:
    cpu, cuda, reason = load_copy(tmp_path / "copy", None)
    assert (cpu, cuda) == ("False", "False")
    assert reason == "the library is missing: it was not compiled for this Python"


def test_sources_that_are_not_compiled_say_so(tmp_path: Path) -> None:
    """A Python that is started in a source folder sees what is there, not what pip has installed."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").touch()
    *_, reason = load_copy(tmp_path / "puma_plugin", None)
    assert reason.endswith(
        f"These are the sources in {tmp_path}; what pip may have installed elsewhere is seen from other folders"
    )


def test_broken_library_shows_the_linkers_words(tmp_path: Path) -> None:
    cpu, _, reason = load_copy(tmp_path / "copy", b"not a library")
    assert cpu == "False"
    assert reason.startswith("ImportError: ")
    assert "file too short" in reason or "invalid ELF header" in reason
