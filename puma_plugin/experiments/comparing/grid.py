"""The rows of `puma compare`: methods, losses and other settings, combined as the configuration says."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, product
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from puma_plugin.experiments.contestants.methods import METHODS, Method
from puma_plugin.experiments.settings.comparison_config import CompareConfig
from puma_plugin.experiments.settings.config import TrainConfig
from puma_plugin.experiments.settings.overrides import override
from puma_plugin.experiments.settings.unused import identity, is_unused

_LONGEST_KEY = 120


def expand(config: CompareConfig) -> list[Method]:
    """The rows, each with its settings checked.

    What changes nothing gives no row of its own: losses where nothing is trained, a setting that the method does not
    look at (see :func:`not_varied`), an ablated value that is the row's own already or makes it another row's run.

    Raises:
        ValueError: an unknown method, a row that is there twice, also under two names, a setting that no method looks
            at, or a setting or value of the wrong type or range.
    """
    unknown = [key for key in config.methods if key not in METHODS]
    if unknown:
        raise ValueError(f"methods holds {unknown[0]!r}; give some of {', '.join(METHODS)}")
    without_effect = not_varied(config)
    for name in (*config.combine, *config.ablate):
        if all(name in names for names in without_effect.values()):
            raise ValueError(
                f"{name} is to be varied, but changes nothing for {', '.join(config.methods)}; leave it out, or add a "
                "method that looks at it"
            )
    rows = [row for key in config.methods for row in _rows_of(config, key)]
    labels: dict[str, str] = {}
    for row in rows:
        if row.key in labels:
            raise ValueError(
                f"two rows would share the file name {row.key!r}: {labels[row.key]!r} and {row.label!r}; give each "
                "value of combine and ablate once"
            )
        labels[row.key] = row.label
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, fail_untyped=True)
    for row in rows:
        # Types, as the command line checks them; ranges were checked when the configuration was made.
        try:
            parser.parse_object(asdict(override(config.train, row.settings)))
        except ArgumentError as error:
            raise ValueError(f"{row.label}: {error}") from error
    return _without_repeated(config, rows)


def _without_repeated(config: CompareConfig, rows: Sequence[Method]) -> list[Method]:
    """The rows without ablated ones that are the run of another row, such as prompts only, once with every drop.

    Raises:
        ValueError: two rows that are no ablations are the same run, such as adapters and adaptformer.
    """
    made = {row.key: identity(override(config.train, row.settings)) for row in rows}
    # Each takes the rate that was best for a row, for an ablated one another row's.
    runs = {row.key: (made[row.key], made[row.rate_key] if len(config.grid) > 1 else None) for row in rows}
    bases = [row for row in rows if row.rate_of is None]
    for one, other in combinations(bases, 2):
        if runs[one.key] == runs[other.key]:
            raise ValueError(
                f"the rows {one.key} ({one.label}) and {other.key} ({other.label}) would be the same run, as nothing "
                "that they look at differs; leave one of them out"
            )
    kept = []
    found = [runs[row.key] for row in bases]
    for row in rows:
        if row.rate_of is not None:
            if runs[row.key] in found:
                continue
            found.append(runs[row.key])
        kept.append(row)
    return kept


def not_varied(config: CompareConfig) -> dict[str, list[str]]:
    """Method -> the settings of `combine` and `ablate` that change nothing for it, whatever their value."""
    found = {}
    for key in config.methods:
        own = METHODS[key].settings
        found[key] = [
            name
            for name, values in (*config.combine.items(), *config.ablate.items())
            # Beside every combination of the others, as some settings matter with certain values of others only.
            if all(
                is_unused(override(config.train, {**own, **changes, name: value}), name)
                for changes in _combinations(config.combine)
                for value in values
            )
        ]
    return found


def reference_of(config: CompareConfig) -> str:
    """The row that the others are compared with: the reference method's first."""
    return _rows_of(config, config.reference or config.methods[0])[0].key


def _rows_of(config: CompareConfig, key: str) -> list[Method]:
    """The rows of one method; combinations that differ in nothing it looks at are one row."""
    base = METHODS[key]
    rows: list[Method] = []
    made: list[dict[str, Any]] = []
    for changes in _combinations(config.combine):
        whole = override(config.train, {**base.settings, **changes})
        effective = {name: value for name, value in changes.items() if not is_unused(whole, name)}
        if effective != changes and effective in made:
            continue
        made.append(effective)
        losses: Sequence[str] = config.losses if base.trained else ()
        for loss in losses or [""]:
            row = _row(base, loss if len(losses) > 1 else "", _loss(config.train, loss), effective)
            rows += [row, *_ablations(config, row)]
    return rows


def _combinations(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for choice in product(*values.values()):
        yield dict(zip(values, choice, strict=True))


def _loss(train: TrainConfig, name: str) -> dict[str, Any]:
    """Settings of the loss: its own usual ones, unless it is the common one."""
    if name in ("", train.loss.name):
        return {}
    return {
        "loss.name": name,
        "loss.arguments": {},
        "loss.miner": "usual",
        "loss.miner_arguments": {},
        "loss.images_per_class": None,
    }


def _row(
    base: Method, loss: str, loss_settings: Mapping[str, Any], changes: Mapping[str, Any], rate_of: str | None = None
) -> Method:
    words = [loss.removesuffix("Loss")] if loss else []
    words += [f"{name} = {_text(value)}" for name, value in changes.items()]
    tail = "".join(f", {word}" for word in words)
    key = _key("_".join([base.key, *words]))
    settings = {**base.settings, **loss_settings, **changes}
    phrase = f"{base.phrase} ({', '.join(words)})" if words else base.phrase
    return Method(key, base.label + tail, base.note, phrase, settings, rate_of)


def _ablations(config: CompareConfig, row: Method) -> list[Method]:
    own = override(config.train, row.settings)
    found = []
    for name, values in config.ablate.items():
        for value in values:
            changed = override(config.train, {**row.settings, name: value})
            if changed != own and not is_unused(changed, name):
                found.append(_row(row, "", {}, {name: value}, rate_of=row.rate_key))
    return found


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "all" if value is None else str(value)


def _key(words: str) -> str:
    """A file name: letters, digits, dots, dashes and underscores, and not too long."""
    key = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-")
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{key[:_LONGEST_KEY]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
