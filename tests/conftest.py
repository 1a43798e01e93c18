"""Settings for the whole suite: one thread per test process (the suite runs in parallel), none depends on another."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """torch counts how often it compiled one function in a process, and gives up after eight times."""
    torch.compiler.reset()


@pytest.fixture(scope="session")
def layouts() -> ModuleType:
    """The makers of the eight datasets' own layouts: ``layouts.MAKERS["CUB"](root)``."""
    file = Path(__file__).parent / "datasets" / "conftest.py"
    specification = importlib.util.spec_from_file_location("dataset_layouts", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Its dataclasses look their module up.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module
