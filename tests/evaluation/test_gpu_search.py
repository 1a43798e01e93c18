"""faiss on GPUs against faiss on the CPU. Needs faiss-gpu and a GPU; no pml."""

import numpy as np
import pytest

from puma_plugin.evaluation import evaluate_retrieval, nearest_neighbours, search
from puma_plugin.evaluation.search import FaissGpuSearcher, FaissSearcher, searcher_type

faiss = pytest.importorskip("faiss")
pytestmark = pytest.mark.skipif(
    not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0, reason="this faiss sees no GPU"
)


def rows_and_labels(spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(150), 20)
    rows = rng.standard_normal((150, 64))[classes] + spread * rng.standard_normal((3000, 64))
    return rows.astype(np.float32), np.stack([classes, classes % 3], axis=1)


@pytest.mark.parametrize("shards", [None, 3])  # of one GPU, where there are no more; None: one of each GPU
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_scores_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, spread: float, shards: int | None) -> None:
    rows, labels = rows_and_labels(spread)
    if shards is not None:
        gpus = [(0, faiss.StandardGpuResources()) for _ in range(shards)]
        monkeypatch.setattr(search, "_gpus", lambda: gpus)
    assert searcher_type(len(rows)) is FaissGpuSearcher
    on_gpu = evaluate_retrieval(rows, labels, distribution_ks={"distribution 0": (1, 900)})
    monkeypatch.setattr("puma_plugin.evaluation.galleries.searcher_type", lambda items: FaissSearcher)
    assert evaluate_retrieval(rows, labels, distribution_ks={"distribution 0": (1, 900)}) == on_gpu


def test_more_neighbours_than_a_gpu_offers() -> None:
    rows, _ = rows_and_labels(1.5)
    similarities, found = nearest_neighbours(rows[:30], rows, 2500)
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert all(len(set(row)) == 2500 for row in found.tolist())
    assert found[:, 0].tolist() == list(range(30))
