"""How much is measured, and on what."""

import os
from dataclasses import dataclass

MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
RAISED_THRESHOLD = 1 << 32
# Modules in ``subjects/``, and the titles of their tables.
SUBJECTS = {
    "adapter": "Stochastic adapter",
    "prompts": "Prompt matching",
    "branches": "Frozen branches of a block (only the input takes a gradient)",
    "overhead": "Host overhead of one call (one element)",
    "training_step": "Whole training step",
    "sampling": "Drawing batches: of the paper's eight training sets, and of a million items",
    "evaluation": "Retrieval metrics of the joint gallery and of eight separate ones",
}
SUITES = ("ceilings", *SUBJECTS, "growth", "memory")


@dataclass(frozen=True)
class Effort:
    """How long one comparison may take.

    Attributes:
        name: "full", "quick" (fewer cases, fewer rounds) or "smoke" (tiny shapes: does everything run?).
        budget_s: seconds that one comparison of all contestants should take, warm-up apart.
        min_rounds, max_rounds: bounds on the rounds that the budget buys; one sample per contestant and round.
        warmup: untimed calls of each contestant before the first round.
        min_sample_s: a sample repeats short calls until it takes this long.
    """

    name: str
    budget_s: float
    min_rounds: int
    max_rounds: int
    warmup: int
    min_sample_s: float


EFFORTS = {
    "smoke": Effort("smoke", 0.0, 3, 3, 1, 0.0),
    "quick": Effort("quick", 2.0, 5, 30, 2, 0.002),
    "full": Effort("full", 4.0, 7, 60, 3, 0.005),
}


@dataclass(frozen=True)
class Settings:
    """What one measuring process does.

    Attributes:
        effort: see `Effort`.
        device: "cpu" or "cuda".
        malloc: "default" or "raised": the allocator thresholds of this process, see `malloc_setting`.
        compiled: whether torch.compile contestants take part.
    """

    effort: Effort
    device: str
    malloc: str
    compiled: bool = True

    @property
    def full(self) -> bool:
        return self.effort.name == "full"

    @property
    def smoke(self) -> bool:
        return self.effort.name == "smoke"

    @property
    def label(self) -> str:
        """How ids of comparisons say under which settings they ran."""
        return "cuda" if self.device == "cuda" else f"malloc_{self.malloc}"


def malloc_setting() -> str:
    """ "raised" if this process was started with both allocator thresholds raised, "default" with neither.

    Raises:
        ValueError: one of the two only, which is neither of the settings that results are kept for.
    """
    given = [name for name in MALLOC_VARIABLES if os.environ.get(name)]
    if len(given) == 1:
        raise ValueError(f"{given[0]} is set alone; set both of {' and '.join(MALLOC_VARIABLES)} or none")
    return "raised" if given else "default"


def malloc_environment(setting: str) -> dict[str, str]:
    """This process's environment with the allocator thresholds of ``setting`` (they are read when a process starts)."""
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    if setting == "raised":
        environment.update(dict.fromkeys(MALLOC_VARIABLES, str(RAISED_THRESHOLD)))
    return environment


def choose_device(name: str) -> str:
    """ "auto" becomes "cuda" where there is one.

    Raises:
        ValueError: "cuda" is asked for and torch sees none, or the name is unknown.
    """
    import torch  # slow to import; everything else here does without

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
