"""Some of many queries get the distances that faiss finds when all are asked, to the last bit."""

import faiss
import numpy as np
import pytest

from puma_plugin.evaluation import asked_together
from puma_plugin.evaluation.asked_together import TogetherSearcher, lay_out


def unit_rows(count: int, width: int, seed: int, spread: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(width) + spread * rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("total", "items", "width"),
    [
        (12, 700, 300),
        (537, 700, 512),
        (4096, 1024, 40),
        (4100, 1500, 130),  # the last block is 4 queries
        (8192, 1023, 16),  # multiplied for the number of queries only
        (9000, 2049, 64),
        (20_000, 7, 31),
    ],
)
@pytest.mark.parametrize("share", [0.003, 0.3])
def test_distances_are_those_among_all(total: int, items: int, width: int, share: float) -> None:
    rows = unit_rows(total + items, width, seed=total)
    queries, gallery = rows[:total], rows[total:]
    expected = faiss.knn(queries, gallery, min(items, 60))
    rng = np.random.default_rng(items)
    # The last ones too, which stand in a block of their own.
    places = np.union1d(rng.choice(total, int(share * total), replace=False), np.arange(total - 3, total))
    searcher = TogetherSearcher(gallery, None, total=total)
    found = searcher.search_at(places, queries[places], min(items, 60), None)
    np.testing.assert_array_equal(found[0], expected[0][places])
    np.testing.assert_array_equal(found[1], expected[1][places])


def test_deep_searches_go_through_the_gallery_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(3000, 64, seed=1)
    expected = faiss.knn(rows[:600], rows, 2500)
    monkeypatch.setattr(asked_together, "_MOST_NEIGHBOURS", 1)
    places = np.arange(5, 600, 7)
    found = TogetherSearcher(rows, None, total=600).search_at(places, rows[places], 2500, None)
    np.testing.assert_array_equal(found[0], expected[0][places])
    np.testing.assert_array_equal(found[1], expected[1][places])


def test_the_own_item_is_left_out() -> None:
    rows = unit_rows(50, 8, seed=2)
    ids = np.arange(50) // 2  # two of each
    distances, found = TogetherSearcher(rows, ids, total=50).search_at(np.array([7, 9]), rows[[7, 9]], 49, ids[[7, 9]])
    assert sorted(found[0].tolist()) == sorted([-1, *(i for i in range(50) if i not in (6, 7))])
    assert np.isinf(distances[:, -1]).all()


def test_up_to_a_block_queries_keep_their_places() -> None:
    ((chosen, rows, size),) = lay_out(np.array([0, 6]), total=7, items=100, width=8)
    assert (chosen.tolist(), rows.tolist(), size) == ([0, 1], [0, 6], 7)


@pytest.mark.parametrize("total", [4097, 12_000])
def test_of_several_blocks_each_query_has_a_row_of_its_own_in_one_array(total: int) -> None:
    places = np.sort(np.random.default_rng(total).choice(total, 3000, replace=False))
    asked = []
    for chosen, rows, size in lay_out(places, total, items=1500, width=64):
        assert len(np.unique(rows)) == len(rows) == len(chosen)
        assert rows.max() < size
        asked += chosen.tolist()
    assert sorted(asked) == list(range(3000))
