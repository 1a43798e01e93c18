"""The figures of the recorded full comparison, which come with the package."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puma_plugin.experiments.reporting.tables import markdown_table
from puma_plugin.utils import write_json

FILE = Path(__file__).with_name("recorded.json")
_KEPT = ("command", "date", "seconds", "machine", "versions", "commit", "settings", "learning_rates", "distributions",
         "methods", "differences", "interval_method", "findings")  # fmt: skip


def load_recorded(path: Path = FILE) -> dict[str, Any]:
    """The recorded comparison."""
    return json.loads(path.read_text(encoding="utf-8"))


def recorded_rates() -> dict[str, float]:
    """Method -> multiplier of the learning rate that the recorded comparison chose."""
    return dict(load_recorded()["learning_rates"]["chosen"])


def record(metrics: Path, target: Path = FILE) -> dict[str, Any]:
    """Keep the summary of a full comparison.

    Args:
        metrics: metrics.json of `puma demo --all`.
        target: where to write.

    Raises:
        ValueError: if the file is of a short demo.
    """
    content = json.loads(metrics.read_text(encoding="utf-8"))
    if content.get("learning_rates") is None:
        raise ValueError(f"{metrics} is of a short demo; give the metrics.json of `puma demo --all`")
    settings = content["settings"]
    kept = {key: content[key] for key in _KEPT}
    seeds = f"{len(settings['data_seeds'])} data seeds x {len(settings['seeds'])} training seeds"
    kept["description"] = f"the recorded full comparison, {seeds}"
    write_json(target, kept)
    return kept


def markdown(recorded: Mapping[str, Any]) -> str:
    """A recorded comparison as README shows it: means in percent with 95 % intervals, and the findings."""
    machine, versions = recorded["machine"], recorded["versions"]
    lines = [
        markdown_table(recorded["methods"]),
        "",
        f"{recorded['description'].capitalize()}: `{recorded['command']}`, {recorded['date'][:10]}, {machine['cpu']}, "
        f"{machine['cores']} cores, torch {versions['torch']}, timm {versions['timm']}, pytorch-metric-learning "
        f"{versions['pytorch-metric-learning']}. Seconds: training of one run, one thread, on a busy machine.",
        "",
        *(f"- {finding}" for finding in recorded["findings"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the recorded comparison as a table, or record a new one.")
    parser.add_argument("metrics", type=Path, nargs="?", help="metrics.json of `puma demo --all` to keep from now on")
    given = parser.parse_args().metrics
    print(markdown(load_recorded() if given is None else record(given)))
