"""Retrieval evaluation over several distributions: exact search, all metrics from one embedding pass. Needs no pml."""

from puma_plugin.evaluation.bootstrap import BootstrapInterval, Comparison, bootstrap_intervals, compare_results
from puma_plugin.evaluation.embed import Embedded, embed, gather_rows
from puma_plugin.evaluation.result import RetrievalResult
from puma_plugin.evaluation.retrieval import evaluate_retrieval
from puma_plugin.evaluation.search import nearest_neighbours

__all__ = [
    "BootstrapInterval",
    "Comparison",
    "Embedded",
    "RetrievalResult",
    "bootstrap_intervals",
    "compare_results",
    "embed",
    "evaluate_retrieval",
    "gather_rows",
    "nearest_neighbours",
]
