"""What adapt() was asked for, kept with the model and in its adapter file."""

from dataclasses import asdict, dataclass
from typing import Any

from puma_plugin.models.adapter import INITS
from puma_plugin.models.arguments import require_bool, require_choice, require_float, require_int

_STRUCTURE = ("adapter_dim", "blocks", "scale", "trainable_scale", "pool_size", "prompt_length", "paper_batchnorm")


@dataclass(frozen=True)
class AdaptationConfig:
    """Arguments of :func:`puma_plugin.adapt`, checked; ``blocks`` are the indices that carry adapters.

    Raises:
        TypeError, ValueError: a value that adapt() does not accept, naming it.
    """

    adapter_dim: int
    drop: float
    scale: float
    trainable_scale: bool
    pool_size: int
    prompt_length: int
    init: str
    paper_batchnorm: bool
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        require_int("adapter_dim", self.adapter_dim, 1)
        require_float("drop", self.drop, 0.0, 1.0)
        require_float("scale", self.scale)
        require_bool("trainable_scale", self.trainable_scale)
        require_int("pool_size", self.pool_size, 0)
        require_int("prompt_length", self.prompt_length, 1)
        require_choice("init", self.init, INITS)
        require_bool("paper_batchnorm", self.paper_batchnorm)
        for index in self.blocks:
            require_int("every entry of blocks", index, 0)
        if not self.blocks and not self.pool_size:
            raise ValueError("nothing to train: blocks is empty and pool_size is 0; give adapters, prompts or both")

    def differences(self, saved: "AdaptationConfig") -> list[str]:
        """What the output hangs on and is another in a file, as words: how a run drops samples or starts is not."""
        return [
            f"{name} is {getattr(saved, name)!r} in the file and {getattr(self, name)!r} in the model"
            for name in _STRUCTURE
            if getattr(saved, name) != getattr(self, name)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        # Of types of Python's own: NumPy's numbers are taken as arguments too.
        numbers = {"drop": float(self.drop), "scale": float(self.scale)}
        return {**asdict(self), **numbers, "blocks": list(self.blocks)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AdaptationConfig":
        """Inverse of :meth:`to_dict`.

        Raises:
            TypeError, ValueError: names are missing or unknown, or a value is not accepted.
        """
        return cls(**{**values, "blocks": tuple(values["blocks"])})
