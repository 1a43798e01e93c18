"""The search on several GPUs, with shards on the CPU in their place: faiss puts both kinds together in the same way."""

from typing import Any

import faiss
import numpy as np
import pytest

from puma_plugin.evaluation import search
from puma_plugin.evaluation.search import FaissGpuSearcher, FaissSearcher


def in_shards(count: int, gallery: np.ndarray) -> Any:
    index = faiss.IndexShards(gallery.shape[1], True, True)  # threads; a shard's positions begin where the last's end
    for _ in range(count):
        index.add_shard(faiss.IndexFlatL2(gallery.shape[1]))
    index.add(gallery)
    return index


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("classes", [5, 200])  # 5: most rows are equal to many others, in every shard
def test_neighbours_are_those_of_one_index(monkeypatch: pytest.MonkeyPatch, shards: int, classes: int) -> None:
    monkeypatch.setattr(search, "_sharded_index", lambda gallery: in_shards(shards, gallery))
    rng = np.random.default_rng(shards)
    rows = search.as_unit_rows(rng.standard_normal((classes, 16))[rng.integers(0, classes, 500)], "rows")
    ids = np.arange(len(rows))
    sharded, whole = FaissGpuSearcher(rows, ids), FaissSearcher(rows, ids)
    for k in (1, 10, 120):
        distances, found = sharded.search(rows[:60], k, ids[:60])
        expected_distances, expected = whole.search(rows[:60], k, ids[:60])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(distances, expected_distances, atol=1e-6)


def test_a_gpu_without_rows_of_its_own_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_gpus", lambda: [(device, None) for device in range(4)])
    assert search.searcher_type(4) is FaissGpuSearcher
    assert search.searcher_type(3) is not FaissGpuSearcher
