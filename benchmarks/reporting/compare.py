"""Two result files of the same machine and the same other packages: what changed by more than noise.

Between two days, and within one, a whole machine gets slower or faster. That drift is estimated from contestants that
run none of this package's code, as the median of their ratios, and taken out: for ours from those of the same
comparison, which took turns with it, else from all of the file. How much single rows scatter around the drift of their
comparison is the noise between runs; where too few took turns to tell, around the drift of the file. It is added to the
noise within the runs (standard error of the medians).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.reporting.results import MEDIAN_EFFICIENCY, NORMAL_MAD, WITH_OURS, Results, Row

SIGMAS = 3.0
SMALLEST_CHANGE = 0.02  # smaller changes are never called outside noise
MACHINE_FIELDS = ("cpu", "cpu_model", "cores", "gpu", "device", "threads", "cpu_capability", "puma_cpu_capability")
LATER_FIELDS = ("cpu_model", "puma_cpu_capability")  # older files do not know them
LARGEST_DRIFT = 0.5  # a machine that changes by more was not the same, or not alone
MIN_PEERS = 5  # fewer rows tell nothing about the drift of a whole file


@dataclass(frozen=True)
class Change:
    """One row in both files.

    Attributes:
        old, new: the rows.
        change: new over old minus 1, drift taken out; positive is slower.
        noise: how far from 0 the logarithm of new over old may be by chance, drift taken out.
        drift_is_known: if not, the machine may be what changed.
    """

    old: Row
    new: Row
    change: float
    noise: float
    drift_is_known: bool = True

    @property
    def verdict(self) -> str:
        """ "slower", "faster", "within noise", or "unknown" if it is more than noise and the drift is not known."""
        if abs(math.log1p(self.change)) <= self.noise:  # so that half and twice the time are equally far
            return "within noise"
        if not self.drift_is_known:
            return "unknown"
        return "slower" if self.change > 0 else "faster"


@dataclass(frozen=True)
class Comparison:
    """Two files.

    Attributes:
        changes: rows that both files have.
        drift: by how much the whole machine changed; None if too few contestants tell.
        scatter: standard deviation of single rows around the drift of their comparison.
        only_old, only_new: keys of the rows that one file has.
        loads: load averages when the two runs began.
    """

    changes: list[Change]
    drift: float | None
    scatter: float
    only_old: list[tuple[str, ...]]
    only_new: list[tuple[str, ...]]
    loads: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())


def compare(old: Results, new: Results, *, other_machine: bool = False) -> Comparison:
    """Compare two files.

    Raises:
        ValueError: they are of different machines or settings of it, or ran with other versions of the packages that
            the other contestants are made of, and ``other_machine`` is false; or they share no row.
    """
    values = {name: (old.machine.get(name), new.machine.get(name)) for name in MACHINE_FIELDS}
    differing = {
        name: pair
        for name, pair in values.items()
        if pair[0] != pair[1] and not (name in LATER_FIELDS and None in pair)
    }
    # What others gain by a new torch would be taken for drift, and ours for slower.
    versions = [results.machine["versions"] for results in (old, new)]
    for name in sorted(versions[0].keys() & versions[1].keys() - {"puma_plugin"}):
        if versions[0][name] != versions[1][name]:
            differing[name] = versions[0][name], versions[1][name]
    if differing and not other_machine:
        raise ValueError(
            f"the files are of different machines or packages (old, new): {differing}; --other-machine compares anyway"
        )
    before, after = ({row.key: row for row in results.rows} for results in (old, new))
    # A quick look (smoke) copies and multiplies less than a run does.
    shared = [key for key in before if key in after and _same_work(before[key], after[key])]
    if not shared:
        raise ValueError(f"{old.path} and {new.path} have no row in common")
    pairs = [(before[key], after[key]) for key in shared]
    drift = Drift(pairs)
    return Comparison(
        [_change(pair, drift) for pair in pairs],
        None if drift.whole is None else math.expm1(drift.whole),
        drift.scatter,
        [key for key in before if key not in shared],
        [key for key in after if key not in shared],
        (old.loads, new.loads),
    )


def _same_work(old: Row, new: Row) -> bool:
    return old.work == new.work or None in (old.work, new.work)


class Drift:
    """By how much the machine changed: log(new / old) of the contestants without this package's code.

    Attributes:
        whole: median over all of them; None where they are fewer than MIN_PEERS.
        scatter: standard deviation of a row around the median of its comparison; around ``whole`` where fewer than
            MIN_PEERS rows have others in their comparison; 0 where they are fewer than MIN_PEERS altogether.
    """

    def __init__(self, pairs: Sequence[tuple[Row, Row]]) -> None:
        self.groups: dict[tuple[str, ...], list[float]] = {}
        for old, new in pairs:
            if old.contestant not in WITH_OURS:
                self.groups.setdefault(old.key[:-1], []).append(math.log(new.median / old.median))
        everything = [ratio for ratios in self.groups.values() for ratio in ratios]
        self.whole = median(everything) if len(everything) >= MIN_PEERS else None
        turns = [ratios for ratios in self.groups.values() if len(ratios) > 1]
        # A median lies close to the few values that it is of.
        residuals = [
            abs(ratio - median(ratios)) * math.sqrt(len(ratios) / (len(ratios) - 1))
            for ratios in turns
            for ratio in ratios
        ]
        if len(residuals) < MIN_PEERS and self.whole is not None:
            residuals = [abs(ratio - self.whole) for ratio in everything]
        self.scatter = NORMAL_MAD * median(residuals) if len(residuals) >= MIN_PEERS else 0.0

    def of(self, row: Row) -> tuple[float, float] | None:
        """The drift to take out of a row, and its standard error; None where nothing tells."""
        ratios = self.groups.get(row.key[:-1], [])
        if row.contestant in WITH_OURS and ratios:
            return median(ratios), MEDIAN_EFFICIENCY * self.scatter / math.sqrt(len(ratios))
        return None if self.whole is None else (self.whole, 0.0)


def _change(pair: tuple[Row, Row], drift: Drift) -> Change:
    old, new = pair
    taken = drift.of(old)
    within = math.hypot(old.relative_error_of_median, new.relative_error_of_median)
    noise = max(SMALLEST_CHANGE, SIGMAS * math.hypot(within, drift.scatter, taken[1] if taken else 0.0))
    ratio = math.log(new.median / old.median)
    return Change(old, new, math.expm1(ratio - taken[0] if taken else ratio), noise, taken is not None)


def comparison_text(comparison: Comparison, *, everything: bool = False) -> str:
    """What is outside noise (or every row): this package's code first, of each the largest change first."""
    changes = sorted(
        comparison.changes, key=lambda change: (change.new.contestant not in WITH_OURS, -abs(change.change))
    )
    outside = [change for change in changes if change.verdict != "within noise"]
    lines = [
        f"{len(changes)} rows in both files, {len(outside)} outside noise. "
        + (
            "How the machine itself changed is not known: the files share too few rows of other people's code."
            if comparison.drift is None
            else f"The machine itself: {comparison.drift:+.1%} (taken out below, by comparison where contestants took "
            f"turns), rows scatter by {comparison.scatter:.1%} around that."
        )
    ]
    if comparison.drift is not None and abs(math.log1p(comparison.drift)) > math.log1p(LARGEST_DRIFT):
        before, after = (", ".join(f"{load:.1f}" for load in loads) or "unknown" for loads in comparison.loads)
        lines.append(
            f"A machine that changes by so much was not alone in one of the runs, or is another one (load when they "
            f"began: {before}; {after}): what follows means little. Measure again on an idle machine."
        )
    for change in changes if everything else outside:
        row = change.new
        lines.append(
            f"{change.verdict:<13} {change.change:+7.1%} (noise {math.expm1(-change.noise):+.1%} to "
            f"{math.expm1(change.noise):+.1%})  "
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
