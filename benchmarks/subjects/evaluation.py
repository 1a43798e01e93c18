"""Retrieval metrics over eight joined test sets: ours in one pass, and pml's AccuracyCalculator once per gallery."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.nn import functional as F

from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Plan, Workload
from benchmarks.timing import Call
from puma_plugin.evaluation import evaluate_retrieval

DISTRIBUTIONS = 8
# Our names for the metrics and pml's.
METRICS = {"recall_at_1": "precision_at_1", "r_precision": "r_precision", "map_at_r": "mean_average_precision_at_r"}


@dataclass(frozen=True)
class EvaluationCase:
    """Embeddings (items, width) of 8 distributions with ``per_class`` images in each class."""

    items: int = 8_000
    width: int = 128
    per_class: int = 20

    @property
    def id(self) -> str:
        return f"N{self.items}-D{self.width}-{self.per_class}_per_class"


class EvaluationWorkload(Workload):
    """Recall@1, R-precision and MAP@R of the joint gallery and of each distribution's own."""

    case: EvaluationCase

    def __init__(self, case: EvaluationCase, device: str) -> None:
        super().__init__(case, "cpu")
        generator = torch.Generator().manual_seed(0)
        classes = case.items // case.per_class
        column = torch.arange(classes).repeat_interleave(case.per_class)
        self.labels = torch.stack((column, column * DISTRIBUTIONS // classes), dim=1)
        centres = torch.randn(classes, case.width, generator=generator)
        noise = torch.randn(len(column), case.width, generator=generator)
        # About half of the nearest neighbours are of the right class: metrics far from 0 and 1.
        self.embeddings = F.normalize(centres[column] + 1.5 * noise, dim=-1)

    def metrics(self, contestant: str) -> dict[str, float]:
        """ "<gallery>.<metric>" to value; galleries are "unified" and the distributions' numbers."""
        return self._ours() if contestant == "ours" else self._pml()

    def _ours(self) -> dict[str, float]:
        names = [str(index) for index in range(DISTRIBUTIONS)]
        result = evaluate_retrieval(self.embeddings, self.labels, distribution_names=names)
        galleries = {"unified": result.unified, **result.per_distribution}
        return {f"{name}.{metric}": values[metric] for name, values in galleries.items() for metric in METRICS}

    def _pml(self) -> dict[str, float]:
        calculator = AccuracyCalculator(include=tuple(METRICS.values()), k="max_bin_count", device=torch.device("cpu"))
        galleries: dict[str, Any] = {"unified": torch.ones(len(self.labels), dtype=torch.bool)}
        galleries.update({str(index): self.labels[:, 1] == index for index in range(DISTRIBUTIONS)})
        values = {}
        for name, mask in galleries.items():
            accuracy = calculator.get_accuracy(self.embeddings[mask], self.labels[mask, 0])
            values.update({f"{name}.{ours}": float(accuracy[theirs]) for ours, theirs in METRICS.items()})
        return values

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        return lambda: self.metrics(contestant)

    def reference(self) -> dict[str, float]:
        return self._pml()

    def check(self, contestant: str, reference: dict[str, float]) -> dict[str, float]:
        values = self.metrics(contestant)
        errors = {name: abs(values[name] - reference[name]) for name in reference}
        # Ties between similarities may fall either way: a few queries of thousands.
        wrong = {name: (values[name], reference[name]) for name, error in errors.items() if error > 1e-3}
        if wrong:
            raise DisagreementError(f"(value, reference) of {wrong}")
        return errors


def plans(settings: Settings) -> list[Plan]:
    """One size; the same in every setting of the allocator. The search runs on the CPU."""
    if settings.malloc == "raised":
        return []
    items = 800 if settings.smoke else 8_000
    return [Plan(EvaluationCase(items), "all_metrics", ("ours", "pml"))]
