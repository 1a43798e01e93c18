"""What a result was measured on: machine, versions, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "pytorch-metric-learning",
    "numpy",
    "faiss-cpu",
    "faiss-gpu",
    "scikit-learn",
    "safetensors",
)


def _cpu_facts() -> dict[str, str]:
    """What the operating system says of the first core; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_model() -> str | None:
    """Family and model, which tell processors apart whose name a virtual machine shortens; None where unknown."""
    facts = _cpu_facts()
    return f"family {facts['cpu family']}, model {facts['model']}" if {"cpu family", "model"} <= facts.keys() else None


def memory_gib() -> float | None:
    """The machine's memory in GiB, or None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, system and, if there is one, the GPU."""
    import torch

    return {
        "cpu": cpu_name(),
        "cpu_model": cpu_model(),
        "cores": available_cores(),
        "memory_gib": memory_gib(),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def package_versions() -> dict[str, str | None]:
    """Versions of the packages a figure can depend on; None where one is not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def version_facts() -> dict[str, str]:
    """Python's version, this package's, and those of the installed packages a figure can depend on."""
    import puma_plugin

    installed = {package: version for package, version in package_versions().items() if version is not None}
    return {"python": platform.python_version(), "puma_plugin": puma_plugin.__version__, **installed}


def commit() -> str | None:
    """The commit of the checkout this package runs from (with "+changes" where files differ); None if installed."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def provenance() -> dict[str, Any]:
    """Machine, versions and commit, as metrics.json records them."""
    return {"machine": machine_facts(), "versions": version_facts(), "commit": commit()}
