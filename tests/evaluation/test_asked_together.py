"""Queries laid out among others as faiss would see them if all were asked."""

import faiss
import numpy as np
import pytest

from puma_plugin.evaluation.asked_together import MOST_TOGETHER, Among


def test_queries_of_several_blocks_share_an_array() -> None:
    # 10 queries in blocks of 4: 0-3, 4-7 and the rest, 8 and 9.
    layers = list(Among(np.array([1, 2, 5, 9]), 10).layers(block=4, products=1, k=1))
    found = [(chosen.tolist(), rows.tolist(), size) for chosen, rows, size in layers]
    # Queries 1 and 5 stand at the same row of their blocks; the rest follows a whole block.
    assert found == [([0, 1, 3], [1, 2, 5], 6), ([2], [1], 4)]


def test_fewer_queries_than_a_block_keep_their_places() -> None:
    ((chosen, rows, size),) = Among(np.array([6, 0]), 7).layers(block=4096, products=1, k=1)
    assert (rows[np.argsort(chosen)].tolist(), size) == ([6, 0], 7)
    assert list(Among(np.array([], int), 7).layers(block=4, products=1, k=1)) == []


def test_many_neighbours_make_smaller_blocks() -> None:
    sizes = [size for _, _, size in Among(np.arange(40), 40).layers(block=4096, products=1, k=1 << 22)]
    assert max(sizes) == 4
    assert len(sizes) == 10


def test_among_very_many_the_array_is_as_long_as_sums_need() -> None:
    places = np.arange(0, 2 * MOST_TOGETHER, 7)
    layers = list(Among(places, 2 * MOST_TOGETHER).layers(block=1000, products=1 << 18, k=3))
    assert [size for _, _, size in layers] == [1000, 1000, 513]
    assert np.concatenate([chosen for chosen, _, _ in layers]).tolist() == list(range(len(places)))


@pytest.mark.parametrize(("total", "width"), [(12, 300), (537, 512), (5000, 64), (4100, 130)])
def test_faiss_rounds_as_if_all_were_asked(total: int, width: int) -> None:
    rng = np.random.default_rng(total)
    rows = rng.standard_normal((total, width)).astype(np.float32)
    index = faiss.IndexFlatL2(width)
    index.add(rows[:700])
    everything, _ = index.search(rows, 50)
    # The last ones too, which stand in a block of their own.
    places = np.union1d(rng.choice(total, total // 3, replace=False), np.arange(total - 3, total))
    block, gallery = faiss.cvar.distance_compute_blas_query_bs, faiss.cvar.distance_compute_blas_database_bs
    for chosen, at, size in Among(places, total).layers(block, gallery * width, 50):
        asked = np.full((size, width), np.nan, np.float32)
        asked[at] = rows[places[chosen]]
        np.testing.assert_array_equal(index.search(asked, 50)[0][at], everything[places[chosen]])
