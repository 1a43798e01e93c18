"""Markdown tables of a result file, ready for a README."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.reporting.goals import Verdict, judge
from benchmarks.reporting.results import OURS, SHOWN_FIRST, Comparison, Results, Row
from benchmarks.settings import SUBJECTS

SETTINGS = {
    "cuda": "device time",
    "malloc_raised": "raised allocator thresholds",
    "malloc_default": "default allocator thresholds",
}
# What is timed on a machine with a GPU, where it is not the device's time alone.
ON_A_GPU = {
    "training_step": "as a training loop sees it, of host and device the slower one",
    "sampling": "on the CPU",
    "evaluation": "on the CPU",
}


def report_text(results: Results) -> str:
    """Everything: machine, ceilings, one table per subject, memory, goals."""
    sections = [machine_text(results), failures_text(results), ceilings_table(results)]
    sections += [subject_table(results, subject) for subject in SUBJECTS]
    sections += [memory_table(results), goals_table(judge(results))]
    return "\n\n".join(section for section in sections if section) + "\n"


def machine_text(results: Results) -> str:
    """One paragraph: on what, with what, when."""
    machine = results.machine
    model = f" ({machine['cpu_model']})" if machine.get("cpu_model") else ""
    hardware = [f"{machine['cpu']}{model}", f"{machine['cores']} cores", f"{machine['memory_gib']} GiB"]
    hardware += [str(machine["gpu"])] if machine.get("gpu") else []
    # What torch takes, and what the operators do.
    capability = " / ".join(filter(None, [machine["cpu_capability"], machine.get("puma_cpu_capability")]))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{', '.join(hardware)}; {machine['threads']} threads, {capability}. {versions}. "
        f"Commit {machine.get('commit') or 'unknown'}, {results.date[:16].replace('T', ' ')} UTC{_load(results)}.\n\n"
        "Times are medians ± half the interquartile range; all contestants of a row were timed in turns. "
        "`2.0x` means: takes 2.0 times as long as ours, in the setting (allocator thresholds) that flatters us least; "
        "cases with a * were measured in one setting only. "
        "Limit: the share of the machine's limit that ours reaches, from copy bandwidth and matrix product rate "
        "measured in the same run (training step: from the step without adapters)."
    )


def _load(results: Results) -> str:
    """How busy the machine was: figures of a busy one are those of other processes as well."""
    if not results.loads:
        return ""
    return f", load of the minute before {' and '.join(f'{load:.1f}' for load in results.loads)}"


def failures_text(results: Results) -> str:
    """What the tables should hold and do not, and why."""
    lines = [f"- {failure['test']}: {failure['error']}" for failure in results.failures]
    return "\n".join(["### Failed", "", *lines]) if lines else ""


def ceilings_table(results: Results) -> str:
    """Copy bandwidth and matrix product rates by process."""
    if not results.ceilings:
        return ""
    dtypes = list(results.ceilings[0]["flops_per_s"])
    rows = [
        [
            SETTINGS[entry["setting"]],
            f"{entry['copy_bytes_per_s'] / 1e9:.3g} GB/s",
            *(f"{entry['flops_per_s'][dtype] / 1e12:.3g} TFLOP/s" for dtype in dtypes),
        ]
        for entry in results.ceilings
    ]
    return "### Ceilings\n\n" + markdown(["process", "copy (read + write)", *dtypes], rows)


def subject_table(results: Results, subject: str) -> str:
    """One subject: a line per case and mode, a column per contestant."""
    comparisons = [entry for entry in results.comparisons(subject) if OURS in entry.shown]
    if not comparisons:
        return ""
    names = list(dict.fromkeys(name for entry in comparisons for name in entry.contestants if name != OURS))
    rows = []
    for entry in comparisons:
        ours = entry.shown[OURS]
        cells = [_ratio(entry, name) for name in names]
        rows.append([_case(entry), entry.mode, duration(ours), *cells, _limit(ours)])
    shown = {_shown_setting(entry) for entry in comparisons}
    names_of_times = {**SETTINGS, "cuda": ON_A_GPU.get(subject, SETTINGS["cuda"])}
    note = f"Our times: {', '.join(sorted(names_of_times[setting] for setting in shown))}."
    titles = [name.replace("_", " ") for name in names]
    return f"### {SUBJECTS[subject]}\n\n{note}\n\n" + markdown(["case", "mode", OURS, *titles, "limit"], rows)


def _shown_setting(entry: Comparison) -> str:
    return next(setting for setting in SHOWN_FIRST if setting in entry.rows)


def _case(entry: Comparison) -> str:
    return entry.case_id + (" *" if entry.of_one_setting else "")


def _ratio(entry: Comparison, name: str) -> str:
    ratio = entry.ratio(name)
    return "" if ratio is None else f"{ratio:.2f}x"


def _limit(row: Row) -> str:
    limit = row.limit
    if not limit or limit["share"] is None:
        return ""
    return f"{100 * limit['share']:.0f} % ({limit['bound'].removeprefix('contestant ').replace('_', ' ')})"


def memory_table(results: Results) -> str:
    """Peak memory by case."""
    if not results.memory:
        return ""
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for row in results.memory:
        groups.setdefault((row["subject"], row["case_id"]), {})[row["contestant"]] = row["peak_bytes"]
    names = list(dict.fromkeys(name for peaks in groups.values() for name in peaks))
    rows = []
    for (subject, case_id), peaks in groups.items():
        ours = peaks.get(OURS)
        rows.append([f"{subject.replace('_', ' ')}, {case_id}", *(_peak(peaks.get(name), ours) for name in names)])
    note = (
        "Adapter: one forward and backward pass, beyond its inputs. Training step: everything, with weights and "
        "optimizer state. Sampling: everything up to the first batch, labels included. Evaluation: beyond embeddings "
        "and labels. Each contestant in a process of its own."
    )
    titles = [name.replace("_", " ") for name in names]
    return f"### Peak memory\n\n{note}\n\n" + markdown(["case", *titles], rows)


def _peak(peak: int | None, ours: int | None) -> str:
    if peak is None:
        return ""
    ratio = f" ({peak / ours:.2f}x)" if ours and peak != ours else ""
    return f"{peak / 2**20:.0f} MiB{ratio}"


def goals_table(verdicts: Sequence[Verdict]) -> str:
    """Needed and measured, for ratios on the CPU in both settings; goals that the file does not cover are counted."""
    measured = [verdict for verdict in verdicts if verdict.reached is not None]
    both = any(verdict.by_default is not None for verdict in measured)
    rows = []
    for verdict in measured:
        bound = "at most" if verdict.goal.at_most else "at least"
        result = "reached" if verdict.reached else "missed"
        row = [
            verdict.goal.text,
            f"{bound} {_figure(verdict, verdict.goal.needed)}",
            _figure(verdict, verdict.measured),
        ]
        rows.append([*row, *([_figure(verdict, verdict.by_default)] if both else []), result])
    reached = sum(verdict.reached is True for verdict in measured)
    header = ["goal", "needed", "measured", *(["default thresholds"] if both else []), ""]
    count = f"{reached} of {len(measured)} reached; this run does not measure {len(verdicts) - len(measured)} others."
    return f"### Goals\n\n{count}" + ("\n\n" + markdown(header, rows) if rows else "")


def _figure(verdict: Verdict, value: float | None) -> str:
    if value is None:
        return ""
    if verdict.goal.kind == "bytes":
        return f"{value / 1e6:.0f} MB"
    if verdict.goal.kind == "seconds":
        return f"{value * 1e6:.1f} us" if value < 1e-3 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f}x"


def duration(row: Row) -> str:
    """Median ± half the interquartile range, in a unit that fits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        value = row.median * factor
        if value >= 1 or unit == "us":
            decimals = 2 if value < 10 else (1 if value < 100 else 0)
            return f"{value:.{decimals}f} ± {row.spread * factor:.{decimals}f} {unit}"
    raise AssertionError("unreachable: the last unit takes everything")


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
