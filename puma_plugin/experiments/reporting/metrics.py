"""What metrics.json holds, and report.html is rendered from, whichever command has made the runs."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from puma_plugin.experiments.contestants.methods import Method
from puma_plugin.experiments.reporting.intervals import INTERVAL_METHODS
from puma_plugin.experiments.reporting.machine import provenance
from puma_plugin.experiments.reporting.summary import (
    EXPLANATION,
    Record,
    Unit,
    bootstrapped,
    collapses,
    curves,
    differences,
    findings,
    method_rows,
)


def common_metrics(
    records: Sequence[Record],
    methods: Sequence[Method],
    reference: str,
    *,
    command: str,
    seconds: float,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    curve_note: str,
    remarks: Sequence[str] = (),
    learning_rates: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that all commands have in common; each adds its title, its lead, its cards and what only it knows.

    Args:
        records: of the runs, see :func:`puma_plugin.experiments.running.record.run_record`, with method and seeds.
        methods: of the records, in the order of the rows.
        reference: key of the method that the others are compared with.
        command, seconds, settings: how the command was started, and how long it took.
        facts: what the report lists of the runs beside command, machine and versions.
        curve_note: what the figure of the epochs shows.
        remarks: sentences below the main table, after those on its columns and its intervals.
        learning_rates: what was tried to choose them; None if they were given.
    """
    unit: Unit = "data_seed" if len({record["data_seed"] for record in records}) > 1 else "seed"
    rows = method_rows(records, methods, unit)
    gaps = differences(records, methods, reference, unit)
    left_out = {"settings", "intervals"}
    intervals = INTERVAL_METHODS[unit]
    note = "Points: means. Bars: 95 % intervals."
    if all(row["runs"] == 1 for row in rows):
        # What the figures owe to the choice of test classes can still be told.
        bounds = {record["method"]: record["intervals"] for record in records}
        rows = [bootstrapped(row, bounds[row["key"]]) for row in rows]
        left_out.remove("intervals")
        intervals = INTERVAL_METHODS["class"]
        note = "One run per method. Bars: 95 % bootstrap intervals over the classes."
    origin = provenance()
    machine = origin["machine"]
    return {
        "schema": 1,
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        **origin,
        "settings": settings,
        "learning_rates": learning_rates,
        "distributions": list(rows[0]["per_distribution"]),
        "accent": reference,
        "methods": rows,
        "differences": gaps,
        "interval_name": intervals.name,
        "interval_method": intervals.text,
        "findings": [*findings(rows, gaps, methods, reference), *collapses(records, methods)],
        "curves": curves(records, methods),
        "interval_note": note,
        "curve_note": curve_note,
        "explanation": EXPLANATION,
        "remarks": list(remarks),
        "facts": {
            "Command": command,
            "Machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
            "GPU": machine["gpu"],
            "Versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
            "Commit": origin["commit"],
            **facts,
            "Seconds of the last start": f"{seconds:.0f}",  # earlier ones may have done a part of it
        },
        "runs": [{key: record[key] for key in record if key not in left_out} for record in records],
    }
