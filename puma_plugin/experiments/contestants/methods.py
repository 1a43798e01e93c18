"""The methods that are compared, as changes to one common configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from puma_plugin.experiments.settings.config import TrainConfig
from puma_plugin.experiments.settings.overrides import override


@dataclass(frozen=True)
class Method:
    """A row of a comparison.

    Attributes:
        key: short name, used in files.
        label, note, phrase: what a report calls it, says below, and calls it within a sentence.
        settings: changes to the configuration by dotted name, such as ``{"model.method": "linear"}``.
        rate_of: the method whose learning rate it takes (its own key where it has a grid of its own).
    """

    key: str
    label: str
    note: str
    phrase: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate_of: str | None = None

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return self.settings.get("model.method") != "frozen"

    @property
    def separate(self) -> bool:
        """One model per distribution instead of one for all."""
        return self.settings.get("model.method") == "separate"

    @property
    def rate_key(self) -> str:
        """The method whose learning rate this one takes."""
        return self.rate_of or self.key

    def configure(self, base: TrainConfig, multiplier: float, data_seed: int, seed: int) -> TrainConfig:
        """The base configuration with this method's settings, its learning rate and the seeds."""
        changed = override(base, self.settings)
        rate = changed.optimizer.lr * multiplier
        return override(changed, {"optimizer.lr": rate, "data.seed": data_seed, "seed": seed})


def _method(key: str, label: str, note: str, phrase: str, **model: Any) -> Method:
    settings = {f"model.{name}": value for name, value in {"method": key, **model}.items()}
    return Method(key, label, note, phrase, settings)


_MAIN = (
    _method("frozen", "Frozen features", "nothing trained", "frozen features"),
    _method("linear", "Linear head", "frozen backbone", "a linear head"),
    _method("puma", "PUMA", "stochastic adapters and prompt pool", "PUMA"),
    _method("adapters", "Adapters only", "no drop, no pool", "adapters alone", drop=0.0),
    _method("separate", "One model per dataset", "each fully fine-tuned, own spaces", "one model per dataset"),
    _method("full", "Full fine-tuning", "all weights, jointly", "full fine-tuning"),
)
_OTHERS = (
    _method("lora", "LoRA", "low-rank updates of the attention", "LoRA"),
    _method("vpt_shallow", "VPT, shallow", "prompt tokens in the first block", "shallow VPT"),
    _method("vpt_deep", "VPT, deep", "prompt tokens in every block", "deep VPT"),
    _method("adaptformer", "AdaptFormer style", "parallel adapters, no drop", "adapters in AdaptFormer's style"),
)

METHODS: dict[str, Method] = {method.key: method for method in (*_MAIN, *_OTHERS)}
"""Every method; the keys are the values of `model.method`."""
MAIN_KEYS = tuple(method.key for method in _MAIN)
DEMO_KEYS = ("frozen", "linear", "puma")
"""What the short demo trains; full fine-tuning stands beside it from the recorded run."""


def named(keys: tuple[str, ...]) -> tuple[Method, ...]:
    """The methods with these keys, in this order."""
    return tuple(METHODS[key] for key in keys)


def multiplier_text(multiplier: float) -> str:
    """A multiple of a learning rate, as short as it can be read back from."""
    short = f"{multiplier:g}"
    return short if float(short) == multiplier else repr(float(multiplier))
