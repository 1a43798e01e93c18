"""Result files: pytest-benchmark's JSON with a few more fields, read into rows that tables and plots are made of."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

OURS = "ours"
# Contestants that run code of this package: a change of it may make them slower.
WITH_OURS = frozenset({OURS, "ours_uniform", "ours_m4", "ours_compiled", "torch_branches", "without_adapters"})
# Which setting a table shows times of; ratios are taken over all settings.
SHOWN_FIRST = ("cuda", "malloc_raised", "malloc_default")
NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
MEDIAN_EFFICIENCY = 1.2533  # standard error of the median over that of the mean, normal distribution


@dataclass(frozen=True)
class Row:
    """One contestant in one comparison.

    Attributes:
        subject, case_id, mode, setting, contestant: which.
        case: sizes and dtypes.
        samples: seconds per call, one per round.
        limit: seconds, share, bound, flops and bytes of the limit, or None.
        work: of a ceiling, bytes or FLOP of one call; None of what else is timed, and in older files.
    """

    subject: str
    case_id: str
    mode: str
    setting: str
    contestant: str
    case: dict[str, Any] = field(hash=False)
    samples: tuple[float, ...] = field(hash=False)
    limit: dict[str, Any] | None = field(default=None, hash=False)
    work: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return self.subject, self.case_id, self.mode, self.setting, self.contestant

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def spread(self) -> float:
        """Half the interquartile range, seconds."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / 2

    @property
    def relative_error_of_median(self) -> float:
        """Standard error of the median over the median, robust against outliers."""
        centre = self.median
        deviation = median(abs(sample - centre) for sample in self.samples) * NORMAL_MAD
        return MEDIAN_EFFICIENCY * deviation / math.sqrt(len(self.samples)) / centre


@dataclass(frozen=True)
class Comparison:
    """All contestants of one case and mode, by setting and name."""

    subject: str
    case_id: str
    mode: str
    case: dict[str, Any]
    rows: dict[str, dict[str, Row]]

    @property
    def shown(self) -> dict[str, Row]:
        """The contestants in the setting whose times are shown."""
        return next(self.rows[setting] for setting in SHOWN_FIRST if setting in self.rows)

    @property
    def contestants(self) -> list[str]:
        return list(self.shown)

    def ratios(self, contestant: str) -> dict[str, float]:
        """Its median over ours by setting, where both were measured."""
        return {
            setting: rows[contestant].median / rows[OURS].median
            for setting, rows in self.rows.items()
            if contestant in rows and OURS in rows
        }

    @property
    def of_one_setting(self) -> bool:
        """Whether the less flattering of two settings is not known; on a GPU there is only one."""
        return len(self.rows) == 1 and "cuda" not in self.rows

    def ratio(self, contestant: str) -> float | None:
        """Its median over ours, in the setting that flatters us least; None where one of both is missing."""
        return min(self.ratios(contestant).values(), default=None)

    def slowest(self, contestant: str = OURS) -> float | None:
        """Its slowest median over the settings, seconds; None where it is missing."""
        return max((rows[contestant].median for rows in self.rows.values() if contestant in rows), default=None)


@dataclass(frozen=True)
class Results:
    """One result file.

    Attributes:
        path, machine, date: of the run.
        loads: load averages of the machine when each process of the run began; empty in older files.
        rows: what was timed.
        memory, ceilings: as in the file.
        failures: what was to be measured and could not be or disagreed ("test" and "error").
    """

    path: Path
    machine: dict[str, Any]
    date: str
    rows: list[Row]
    memory: list[dict[str, Any]]
    ceilings: list[dict[str, Any]]
    failures: list[dict[str, str]]
    loads: tuple[float, ...] = ()

    def comparisons(self, subject: str | None = None) -> Iterator[Comparison]:
        """Comparisons in the order of the file, of one subject or of all but the ceilings."""
        groups: dict[tuple[str, str, str], dict[str, dict[str, Row]]] = {}
        for row in self.rows:
            if row.subject != "ceilings" and subject in (None, row.subject):
                group = groups.setdefault((row.subject, row.case_id, row.mode), {})
                group.setdefault(row.setting, {})[row.contestant] = row
        for key, rows in groups.items():
            yield Comparison(*key, case=next(iter(next(iter(rows.values())).values())).case, rows=rows)


def load_results(path: Path) -> Results:
    """Read a result file.

    Raises:
        ValueError: it is not a result file of these benchmarks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [_row(entry) for entry in content["benchmarks"]]
        return Results(
            path,
            content["machine_info"],
            content["datetime"],
            rows,
            content["memory"],
            content["ceilings"],
            content.get("failures", []),  # older files do not tell
            tuple(entry["load_average_before"] for entry in content["settings"] if "load_average_before" in entry),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a result file of `puma bench` ({type(error).__name__}: {error})") from error


def _row(entry: dict[str, Any]) -> Row:
    info = entry["extra_info"]
    return Row(
        info["subject"],
        info["case_id"],
        info["mode"],
        info["setting"],
        info["contestant"],
        info["case"],
        tuple(entry["stats"]["data"]),
        info.get("limit"),
        info.get("work"),
    )
