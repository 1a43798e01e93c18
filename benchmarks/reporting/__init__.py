"""Reading result files, and what they are turned into."""

import sys
from pathlib import Path

from benchmarks.reporting.results import load_results
from benchmarks.reporting.tables import report_text
from puma_plugin.utils import atomic_write


def write_report(path: Path) -> str:
    """Write tables and plots of a result file next to it; the tables as text. Without matplotlib there are no plots.

    The plots are in a folder named after the file: what is in ``plots/`` is shown as that of a chosen run, and no other
    run may replace a part of it (``python -m benchmarks.report plots FILE`` does).
    """
    results = load_results(path)
    text = report_text(results)
    with atomic_write(path.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    try:
        from benchmarks.reporting.plots import write_plots  # matplotlib is slow to import
    except ModuleNotFoundError as error:
        print(f"no plots are written: {error}; install it with pip install matplotlib", file=sys.stderr)
    else:
        write_plots(results, path.with_name(f"{path.stem}-plots"))
    return text
