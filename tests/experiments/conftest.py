"""Class folders and the small copies of the benchmark that the tests of the datasets make."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


def _write_classes(folder: Path, classes: Mapping[str, int], suffix: str = ".png") -> None:
    generator = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02d}{suffix}")


@pytest.fixture(scope="session")
def write_classes() -> Callable[..., None]:
    """Writes so many small random images of each class into its own subfolder."""
    return _write_classes


@pytest.fixture(scope="session")
def benchmark_root(layouts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eight datasets, with all their classes or, of the two with thousands, a few. Read only."""
    root = tmp_path_factory.mktemp("benchmark")
    for make in layouts.MAKERS.values():
        make(root)
    return root
