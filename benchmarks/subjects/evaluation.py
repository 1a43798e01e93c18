"""Retrieval metrics over eight joined test sets: ours in one pass, and pml's AccuracyCalculator once per gallery."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.nn import functional as F

from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings
from benchmarks.subjects.workload import Plan, Subject, Workload
from benchmarks.timing import Call
from puma_plugin.datasets.benchmark import BENCHMARK
from puma_plugin.evaluation import evaluate_retrieval
from puma_plugin.testers.multi_distribution_tester import PML_NAMES

DISTRIBUTIONS = 8
# Test classes and images of the paper's eight datasets. Every image is query and gallery item here, which is a little
# more work than the real In-shop.
PAPER = tuple(dataset.facts.test_size for dataset in BENCHMARK.values())
# SOP and In-shop are asked for deeper recalls in their own galleries.
PAPER_KS = {str(index): dataset.recall_ks for index, dataset in enumerate(BENCHMARK.values()) if dataset.recall_ks}


@dataclass(frozen=True)
class EvaluationCase:
    """Embeddings (items, width) of 8 distributions with ``per_class`` images in each class.

    With ``per_class`` 0 distributions and classes have the sizes of the paper's test sets: fewer classes for fewer
    items, up to all 15,937.
    """

    items: int = 8_000
    width: int = 128
    per_class: int = 20

    @property
    def id(self) -> str:
        sizes = f"{self.per_class}_per_class" if self.per_class else "paper_sizes"
        return f"N{self.items}-D{self.width}-{sizes}"


class EvaluationWorkload(Workload):
    """Recall@1, R-precision and MAP@R of the joint gallery and of each distribution's own."""

    case: EvaluationCase

    def __init__(self, case: EvaluationCase, device: str) -> None:
        super().__init__(case, "cpu")
        generator = torch.Generator().manual_seed(0)
        self.labels = _even_labels(case) if case.per_class else _paper_labels(case.items)
        self.ks = {} if case.per_class else PAPER_KS
        column, classes = self.labels[:, 0], int(self.labels[-1, 0]) + 1
        centres = torch.randn(classes, case.width, generator=generator)
        noise = torch.randn(len(column), case.width, generator=generator)
        # Neighbours of the right class and of others: metrics far from 0 and 1.
        self.embeddings = F.normalize(centres[column] + 1.5 * noise, dim=-1)

    def metrics(self, contestant: str) -> dict[str, float]:
        """ "<gallery>.<metric>" to value; galleries are "unified" and the distributions' numbers."""
        return self._ours() if contestant == "ours" else self._pml()

    def _ours(self) -> dict[str, float]:
        names = [str(index) for index in range(DISTRIBUTIONS)]
        result = evaluate_retrieval(self.embeddings, self.labels, distribution_names=names, distribution_ks=self.ks)
        galleries = {"unified": result.unified, **result.per_distribution}
        return {f"{name}.{metric}": values[metric] for name, values in galleries.items() for metric in PML_NAMES}

    def _pml(self) -> dict[str, float]:
        include = tuple(PML_NAMES.values())
        calculator = AccuracyCalculator(include=include, k="max_bin_count", device=torch.device("cpu"))
        galleries: dict[str, Any] = {"unified": torch.ones(len(self.labels), dtype=torch.bool)}
        galleries.update({str(index): self.labels[:, 1] == index for index in range(DISTRIBUTIONS)})
        values = {}
        for name, mask in galleries.items():
            accuracy = calculator.get_accuracy(self.embeddings[mask], self.labels[mask, 0])
            values.update({f"{name}.{ours}": float(accuracy[theirs]) for ours, theirs in PML_NAMES.items()})
        return values

    def prepare(self, contestant: str, mode: str, index: int) -> Call:
        return lambda: self.metrics(contestant)

    def reference(self) -> dict[str, float]:
        return self._pml()

    def check(self, contestant: str, reference: dict[str, float]) -> dict[str, float]:
        values = self.metrics(contestant)
        errors = {name: abs(values[name] - reference[name]) for name in reference}
        wrong = {name: (values[name], reference[name]) for name, error in errors.items() if error > 1e-12}
        if wrong:
            raise DisagreementError(f"(value, reference) of {wrong}")
        return errors


def _even_labels(case: EvaluationCase) -> torch.Tensor:
    classes = case.items // case.per_class
    column = torch.arange(classes).repeat_interleave(case.per_class)
    return torch.stack((column, column * DISTRIBUTIONS // classes), dim=1)


def _paper_labels(items: int) -> torch.Tensor:
    """Labels (class, distribution); classes of one data set differ in size about as real ones do."""
    source = np.random.default_rng(0)
    share = items / sum(images for _, images in PAPER)
    parts, first = [], 0
    for number, (classes, images) in enumerate(PAPER):
        count = max(2, round(classes * min(share, 1.0)))
        sizes = 1 + source.multinomial(max(round(images * share) - count, 0), source.dirichlet(np.full(count, 4.0)))
        column = np.repeat(np.arange(first, first + count), sizes)
        parts.append(np.stack([column, np.full(len(column), number)], axis=1))
        first += count
    return torch.from_numpy(np.concatenate(parts))


def plans(settings: Settings) -> list[Plan]:
    """One size; the same in every setting of the allocator. The search runs on the CPU."""
    if settings.malloc == "raised":
        return []
    items = 800 if settings.smoke else 8_000
    return [Plan(EvaluationCase(items), "all_metrics", ("ours", "pml"))]


SUBJECT = Subject("evaluation", EvaluationWorkload, EvaluationCase, plans)
