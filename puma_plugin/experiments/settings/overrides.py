"""Changing single settings of a configuration by their dotted names, as the command line writes them."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")


def override(config: T, settings: Mapping[str, Any], within: str = "") -> T:
    """A copy of the configuration with these settings.

    Args:
        config: a dataclass, possibly with dataclasses and dictionaries inside.
        settings: dotted name -> value, such as ``{"model.drop": 0.25, "loss.arguments.ema": "global"}``.
        within: what messages write before the names, such as ``model.`` where the configuration is that part.

    Raises:
        ValueError: there is no such setting, or the configuration refuses the value.
    """
    # Settings of one part are changed together: they may only be valid together.
    parts: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        head, _, rest = name.partition(".")
        parts.setdefault(head, {})[rest] = value
    changes = {}
    for head, inner in parts.items():
        own = {field.name for field in fields(config)}  # type: ignore[arg-type]
        if head not in own:
            raise ValueError(f"there is no setting {within + head!r}; there are {', '.join(sorted(own))}")
        # A part that is given whole, and then settings inside of it.
        value = inner.pop("", getattr(config, head))
        changes[head] = _change(value, inner, within + head) if inner else value
    return replace(config, **changes)  # type: ignore[type-var]


def _change(value: Any, inner: Mapping[str, Any], place: str) -> Any:
    if is_dataclass(value):
        return override(value, inner, f"{place}.")
    if isinstance(value, Mapping):
        return {**value, **inner}
    raise ValueError(f"{place} is {value!r} and has no setting {next(iter(inner))!r} inside")
