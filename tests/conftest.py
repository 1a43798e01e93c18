"""Settings for the whole suite: one thread per test process (the suite runs in parallel), none depends on another."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

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


class Graphs:
    """A backend of torch.compile that runs graphs as they are and collects the names of our operators in them."""

    def __init__(self) -> None:
        from torch._dynamo.backends.common import aot_autograd  # takes seconds, which few tests need

        self.operators: set[str] = set()
        self.backend = aot_autograd(fw_compiler=self._look)

    def _look(self, module: torch.fx.GraphModule, _: Sequence[Any]) -> Any:
        from functorch.compile import make_boxed_func

        names = (str(node.target) for node in module.graph.nodes)
        self.operators.update(name for name in names if name.startswith("puma."))
        return make_boxed_func(module.forward)


@pytest.fixture
def graphs() -> Graphs:
    return Graphs()


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
