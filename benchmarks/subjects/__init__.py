"""What is measured: one workload per subject, for speed, memory and correctness alike."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.settings import Settings
from benchmarks.subjects.workload import Plan, Workload

_CLASSES = {
    "adapter": ("AdapterWorkload", "AdapterCase"),
    "prompts": ("PromptWorkload", "PromptCase"),
    "branches": ("BranchWorkload", "BranchCase"),
    "overhead": ("OverheadWorkload", "OverheadCase"),
    "training_step": ("StepWorkload", "StepCase"),
    "sampling": ("SamplingWorkload", "SamplingCase"),
    "evaluation": ("EvaluationWorkload", "EvaluationCase"),
}
SUBJECTS = tuple(_CLASSES)


@dataclass(frozen=True)
class Subject:
    """A subject's workload class, the class of its cases, and what is compared."""

    name: str
    workload: Callable[[Any, str], Workload]
    case: type
    plans: Callable[[Settings], list[Plan]]


def load_subject(name: str) -> Subject:
    """Import a subject; each needs other parts of the package, so one that is broken does not stop the others.

    Raises:
        ValueError: there is no such subject.
    """
    if name not in _CLASSES:
        raise ValueError(f"unknown subject {name!r}; there are {', '.join(SUBJECTS)}")
    module = importlib.import_module(f"benchmarks.subjects.{name}")
    workload, case = _CLASSES[name]
    return Subject(name, getattr(module, workload), getattr(module, case), module.plans)
