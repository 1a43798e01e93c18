"""The methods that the demo compares, as changes to one common configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from puma_plugin.experiments.config import TrainConfig


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        key: short name, used in files.
        label, note, phrase: what the report calls it, says below, and calls it within a sentence.
        model: changes to the model configuration.
        separate: one model per distribution instead of one for all.
        rate_of: the method whose learning rate it takes (its own key where it has a grid of its own).
    """

    key: str
    label: str
    note: str
    phrase: str
    model: Mapping[str, Any] = field(default_factory=dict)
    separate: bool = False
    rate_of: str | None = None

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return self.model.get("method") != "frozen"

    @property
    def rate_key(self) -> str:
        """The method whose learning rate this one takes."""
        return self.rate_of or self.key

    def configure(self, base: TrainConfig, multiplier: float, data_seed: int, seed: int) -> TrainConfig:
        """The base configuration with this method's model, its learning rate and the seeds."""
        return replace(
            base,
            model=replace(base.model, **self.model),
            optimizer=replace(base.optimizer, lr=base.optimizer.lr * multiplier),
            data=replace(base.data, seed=data_seed),
            seed=seed,
        )


_MAIN = (
    Method("frozen", "Frozen features", "nothing trained", "frozen features", {"method": "frozen"}),
    Method("linear", "Linear head", "frozen backbone", "a linear head", {"method": "linear"}),
    Method("puma", "PUMA", "stochastic adapters and prompt pool", "PUMA", {"method": "puma"}),
    Method("adapters", "Adapters only", "no drop, no pool", "adapters alone", {"method": "adapters", "drop": 0.0}),
    Method(
        "separate",
        "One model per dataset",
        "each fully fine-tuned, own spaces",
        "one model per dataset",
        {"method": "full"},
        separate=True,
    ),
    Method("full", "Full fine-tuning", "all weights, jointly", "full fine-tuning", {"method": "full"}),
)
_ABLATIONS = (
    Method(
        "puma_no_drop",
        "PUMA, p = 0",
        "no stochastic drop",
        "PUMA without drop",
        {"method": "puma", "drop": 0.0},
        rate_of="puma",
    ),
    Method(
        "puma_no_pool",
        "PUMA, no pool",
        "adapters with p = 0.5",
        "PUMA without the pool",
        {"method": "adapters"},
        rate_of="puma",
    ),
    Method(
        "puma_scale_low",
        "PUMA, scale 0.1",
        "the paper's adapter scale",
        "PUMA at scale 0.1",
        {"method": "puma", "scale": 0.1},
        rate_of="puma",
    ),
    Method(
        "puma_narrow",
        "PUMA, r = 8",
        "narrow adapters",
        "PUMA with r = 8",
        {"method": "puma", "adapter_dim": 8},
        rate_of="puma",
    ),
    Method(
        "puma_wide",
        "PUMA, r = 128",
        "wide adapters",
        "PUMA with r = 128",
        {"method": "puma", "adapter_dim": 128},
        rate_of="puma",
    ),
)

METHODS: dict[str, Method] = {method.key: method for method in (*_MAIN, *_ABLATIONS)}
MAIN_KEYS = tuple(method.key for method in _MAIN)
ABLATION_KEYS = tuple(method.key for method in _ABLATIONS)
DEMO_KEYS = ("frozen", "linear", "puma")
"""What the short demo trains; full fine-tuning stands beside it from the recorded run."""
