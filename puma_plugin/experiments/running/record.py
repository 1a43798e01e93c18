"""What is kept of a run that has ended."""

from typing import Any

from puma_plugin.evaluation import RetrievalResult, bootstrap_intervals
from puma_plugin.experiments.reporting.summary import flat_scores
from puma_plugin.experiments.running.separate import AnyRun, without_joint


def run_record(run: AnyRun, result: RetrievalResult | None = None) -> dict[str, Any]:
    """How a run was trained and, if it was tested, all figures of the test with their intervals over the classes."""
    training = {
        "trainable": run.trainable,
        "seconds": run.seconds,
        "steps": run.steps,
        "history": run.history,
        "validation": run.validation,
    }
    if result is None:
        return training
    figures = result.to_dict(per_class=True)
    if run.config.model.is_separate:
        figures = without_joint(figures)
    intervals = {name: interval.to_dict() for name, interval in bootstrap_intervals(figures).items()}
    return {**training, "scores": flat_scores(figures), "result": figures, "intervals": intervals}
