"""Two result files of the same machine: what changed by more than noise.

Between two days a whole machine gets slower or faster. That drift is estimated from the contestants that are not ours
(their code did not change) as the median of their ratios, and taken out; how much single rows scatter around it is the
noise between runs. It is added to the noise within the runs (standard error of the medians).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.reporting.results import NORMAL_MAD, Results, Row

SIGMAS = 3.0
SMALLEST_CHANGE = 0.02  # smaller changes are never called outside noise
MACHINE_FIELDS = ("cpu", "cores", "gpu", "device", "threads")
MIN_PEERS = 5  # fewer rows tell nothing about drift


@dataclass(frozen=True)
class Change:
    """One row in both files.

    Attributes:
        old, new: the rows.
        change: new over old minus 1, drift taken out; positive is slower.
        noise: how far from 0 it may be by chance.
    """

    old: Row
    new: Row
    change: float
    noise: float

    @property
    def verdict(self) -> str:
        """ "slower", "faster" or "within noise"."""
        if abs(self.change) <= self.noise:
            return "within noise"
        return "slower" if self.change > 0 else "faster"


@dataclass(frozen=True)
class Comparison:
    """Two files.

    Attributes:
        changes: rows that both files have.
        drift: by how much the whole machine changed, from the contestants that are not ours; 0 if there are too few.
        scatter: standard deviation of single rows around the drift.
        only_old, only_new: keys of the rows that one file has.
    """

    changes: list[Change]
    drift: float
    scatter: float
    only_old: list[tuple[str, ...]]
    only_new: list[tuple[str, ...]]


def compare(old: Results, new: Results, *, other_machine: bool = False) -> Comparison:
    """Compare two files.

    Raises:
        ValueError: they are of different machines or settings of it, and ``other_machine`` is false; or they share no
            row.
    """
    differing = {
        name: (old.machine.get(name), new.machine.get(name))
        for name in MACHINE_FIELDS
        if old.machine.get(name) != new.machine.get(name)
    }
    if differing and not other_machine:
        raise ValueError(
            f"the files are of different machines (old, new): {differing}; --other-machine compares anyway"
        )
    before, after = ({row.key: row for row in results.rows} for results in (old, new))
    shared = [key for key in before if key in after]
    if not shared:
        raise ValueError(f"{old.path} and {new.path} have no row in common")
    drift, scatter = machine_drift([(before[key], after[key]) for key in shared])
    changes = [_change(before[key], after[key], drift, scatter) for key in shared]
    return Comparison(
        changes,
        math.expm1(drift),
        scatter,
        [key for key in before if key not in after],
        [key for key in after if key not in before],
    )


def machine_drift(pairs: Sequence[tuple[Row, Row]]) -> tuple[float, float]:
    """Median and standard deviation of log(new / old) over the contestants that are not ours."""
    ratios = [math.log(new.median / old.median) for old, new in pairs if not old.contestant.startswith("ours")]
    if len(ratios) < MIN_PEERS:
        return 0.0, 0.0
    drift = median(ratios)
    return drift, NORMAL_MAD * median(abs(ratio - drift) for ratio in ratios)


def _change(old: Row, new: Row, drift: float, scatter: float) -> Change:
    within = math.hypot(old.relative_error_of_median, new.relative_error_of_median)
    noise = max(SMALLEST_CHANGE, SIGMAS * math.hypot(within, scatter))
    return Change(old, new, math.expm1(math.log(new.median / old.median) - drift), noise)


def comparison_text(comparison: Comparison, *, everything: bool = False) -> str:
    """What is outside noise (or every row), the largest change first."""
    changes = sorted(comparison.changes, key=lambda change: -abs(change.change))
    outside = [change for change in changes if change.verdict != "within noise"]
    lines = [
        f"{len(changes)} rows in both files, {len(outside)} outside noise. The machine itself: "
        f"{comparison.drift:+.1%} (taken out below), rows scatter by {comparison.scatter:.1%} around that."
    ]
    for change in changes if everything else outside:
        row = change.new
        lines.append(
            f"{change.verdict:<13} {change.change:+7.1%} (noise {change.noise:.1%})  "
            f"{change.old.median * 1e3:.4g} -> {row.median * 1e3:.4g} ms  "
            f"{row.subject} {row.case_id} {row.mode} {row.setting} {row.contestant}"
        )
    shared = {change.new.subject for change in changes}
    for title, keys in (("only in the old file", comparison.only_old), ("only in the new file", comparison.only_new)):
        # What the other run did not measure at all takes one line.
        absent = Counter(key[0] for key in keys if key[0] not in shared)
        if absent:
            lines.append(f"{title}: {', '.join(f'{subject} ({count} rows)' for subject, count in absent.items())}")
        lines += [f"{title}: {' '.join(key)}" for key in keys if key[0] in shared]
    return "\n".join(lines)
