"""The machine that figures belong to: provenance, name of its results folder, size of its last cache."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import puma_plugin
from puma_plugin.experiments.reporting.machine import provenance
from puma_plugin.ops.loader import CPU_MODULE

PACKAGE = Path(puma_plugin.__file__).resolve().parent
SOURCES = PACKAGE.parent / "csrc"
DEFAULT_CACHE_BYTES = 64 << 20  # where the system does not tell: more than most have
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level_cache_bytes(device: str) -> int:
    """Size of the largest cache in front of the memory: L3 (or L2) of the CPU, L2 of the GPU."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text.rstrip("KMG")) * UNITS.get(text[-1], 1))
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def machine_slug(machine: dict[str, Any]) -> str:
    """Folder name of a machine's results, such as ``amd-epyc-9354-16-cores-nvidia-h200``."""
    cpu = re.sub(r"\((r|tm)\)|processor|cpu @ .*", " ", str(machine["cpu"]).lower())
    text = f"{cpu} {machine['cores']} cores {machine.get('gpu') or ''}".lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def commit_of_all(commits: Sequence[str | None]) -> str | None:
    """The first, with "+changes" where others differ: then files changed while the benchmarks ran."""
    first = commits[0]
    if first is None or "+" in first or set(commits) == {first}:
        return first
    return f"{first}+changes"


def changed_since_the_build(package: Path, sources: Path) -> list[str]:
    """Sources of the operators that are newer than a compiled library of ``package``, by name; empty without either."""
    built = min((library.stat().st_mtime for library in package.glob("_C*.so")), default=None)
    if built is None:
        return []
    return sorted(path.name for path in sources.rglob("*.*") if path.stat().st_mtime > built)


def machine_info(device: str) -> dict[str, Any]:
    """What pytest-benchmark's file says about machine, versions and commit."""
    facts = provenance()
    info = {
        **facts["machine"],
        "versions": facts["versions"],
        "commit": facts["commit"],
        "changed_since_the_build": changed_since_the_build(PACKAGE, SOURCES),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "puma_cpu_capability": CPU_MODULE.cpu_capability() if CPU_MODULE is not None else None,
        "last_level_cache_bytes": last_level_cache_bytes(device),
        "device": device,
    }
    if device == "cuda":
        info["cuda"] = torch.version.cuda
    return info
