"""Puts the source folder on the path, for the `benchmarks` package, and makes small result files."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


class ResultFiles:
    """Writes made-up result files."""

    case: ClassVar[dict[str, Any]] = {
        "batch": 180, "tokens": 205, "width": 384, "adapter_dim": 128, "drop": 0.5, "dtype": "float32",
        "residual_dtype": "",
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entry(self, contestant: str, samples: Sequence[float], **changes: Any) -> dict[str, Any]:
        """One benchmark: the adapter at the paper's size, unless changed."""
        info = {
            "subject": "adapter", "case": self.case, "case_id": "B180", "mode": "both", "contestant": contestant,
            "setting": "malloc_raised",
            "limit": {"seconds": 0.5e-3, "share": 0.5, "bound": "bandwidth", "flops": 1e9, "bytes": 1e8},
            **changes,
        }  # fmt: skip
        return {"extra_info": info, "stats": {"data": list(samples)}}

    def noisy(self, centre: float, spread: float = 0.01, count: int = 21, seed: int = 0) -> list[float]:
        """Samples around a centre with this relative standard deviation."""
        source = random.Random(seed)
        return [centre * (1 + source.gauss(0, spread)) for _ in range(count)]

    def write(
        self,
        name: str,
        benchmarks: list[dict[str, Any]],
        memory: Sequence[dict[str, Any]] = (),
        failures: Sequence[dict[str, str]] = (),
        **machine: Any,
    ) -> Path:
        """A result file; its path."""
        info = {
            "cpu": "Test CPU", "cores": 2, "memory_gib": 8.0, "gpu": None, "threads": 2, "cpu_capability": "AVX2",
            "device": "cpu", "versions": {"torch": "2.14.1"}, "commit": "0123abcd", **machine,
        }  # fmt: skip
        ceilings = [
            {"setting": "malloc_raised", "copy_bytes_per_s": 1e10, "flops_per_s": {"float32": 1e11, "bfloat16": 2e11}}
        ]
        content = {
            "machine_info": info, "commit_info": {}, "version": "5", "datetime": "2026-01-31T15:30:00+00:00",
            "benchmarks": benchmarks, "memory": list(memory), "ceilings": ceilings, "settings": [],
            "failures": list(failures),
        }  # fmt: skip
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(content))
        return path


@pytest.fixture
def files(tmp_path: Path) -> ResultFiles:
    return ResultFiles(tmp_path)
