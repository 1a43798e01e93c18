"""Merged lists, equal distances and what rounding can do, worked out by hand."""

import faiss
import numpy as np
import pytest

from puma_plugin.evaluation.ordering import merge_neighbours, rounding_matters, settle_ties


@pytest.mark.parametrize("shards", [2, 3])
def test_an_index_that_orders_ties_differently_is_put_right(shards: int) -> None:
    # Shares of the rows, as on several GPUs; the inner product's order of equals is not by position.
    rng = np.random.default_rng(shards)
    rows = rng.choice([-1.0, 1.0], size=(12, 16)).astype(np.float32)[rng.integers(0, 12, 400)]
    reference = faiss.IndexFlatL2(16)
    reference.add(rows)
    sharded = faiss.IndexShards(16, False, True)
    for part in np.array_split(rows[::-1], shards):
        sharded.add_shard(flat := faiss.IndexFlatL2(16))
        flat.add(np.ascontiguousarray(part))
    reversed_ids = faiss.IndexIDMap(faiss.IndexFlatL2(16))
    reversed_ids.add_with_ids(np.ascontiguousarray(rows[::-1]), np.arange(400)[::-1].copy())
    for k in (1, 7, 150):
        expected = reference.search(rows[:30], k)
        assert not np.array_equal(reversed_ids.search(rows[:30], k)[1], expected[1])
        for found, wanted in zip(
            settle_ties(reversed_ids.search, reference.search, rows[:30], k), expected, strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    backwards = faiss.IndexFlatL2(16)
    backwards.add(np.ascontiguousarray(rows[::-1]))
    for found, wanted in zip(
        settle_ties(sharded.search, backwards.search, rows[:30], 50), backwards.search(rows[:30], 50), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_the_reference_is_asked_where_it_is_open_which_of_two_equals_is_the_last() -> None:
    distances = np.float32([[0.0, 1.0, 1.0], [0.0, 1.0, 2.0], [1.0, 1.0, 2.0]])
    positions = np.array([[4, 9, 3], [4, 3, 9], [9, 4, 3]])
    asked: list[list[float]] = []

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = queries[:, 0].astype(int)
        return distances[rows, :k], positions[rows, :k]

    def reference(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(queries[:, 0].tolist())
        return np.float32([[0.0, 1.0]]), np.array([[4, 3]])

    queries = np.arange(3, dtype=np.float32)[:, None]
    found = settle_ties(search, reference, queries, 2)
    assert asked == [[0.0]]
    assert found[0].tolist() == [[0, 1], [0, 1], [1, 1]]
    assert found[1].tolist() == [[4, 3], [4, 3], [4, 9]]
    settle_ties(search, reference, queries[1:], 2)
    assert len(asked) == 1


def test_merged_neighbours_are_ordered_by_distance_and_position() -> None:
    first = np.array([[0.1, 0.4, np.inf]], np.float32), np.array([[5, 2, -1]])
    second = np.array([[0.1, 0.2, 0.4]], np.float32), np.array([[3, 9, 1]])
    distances, positions = merge_neighbours(first, second, 5)
    assert positions.tolist() == [[3, 5, 9, 1, 2]]
    np.testing.assert_array_equal(distances, np.float32([[0.1, 0.1, 0.2, 0.4, 0.4]]))


def test_rounding_matters_where_the_order_of_close_neighbours_does() -> None:
    step, hit, miss = 1e-6, True, False
    distances = np.float32([[0.5, 0.5 + step, 0.7, 0.9, 0.9 + step], [0.5, 0.6, 0.7, np.inf, np.inf]])
    distances = distances[[0, 0, 0, 0, 1, 0]]
    marks = np.array(
        [
            [hit, hit, miss, hit, miss],  # the close ones are both hits, or beyond the three that count
            [hit, miss, miss, miss, miss],  # a hit and a miss that may be the other way round
            [hit, hit, miss, miss, miss],  # four count: it is open which of the last two is the fourth
            [hit, hit, miss, hit, miss],  # five count: as before
            [hit, miss, hit, miss, miss],  # nothing is close where the gallery has ended
            [hit, hit, miss, miss, miss],  # the close ones are alike, though not like the first
        ]
    )
    found = rounding_matters(distances, marks, np.array([3, 3, 4, 5, 3, 5]), 16)
    assert found.tolist() == [False, True, True, True, False, False]
    # Wider rows are rounded more often.
    far = np.float32([[0.5, 0.5 + 5e-6]])
    assert rounding_matters(far, np.array([[hit, miss]]), 2, 16).tolist() == [False]
    assert rounding_matters(far, np.array([[hit, miss]]), 2, 1024).tolist() == [True]
    # At width 16 by 2^-20 + 4 * 2^-22 at most.
    edge = np.float32([[0.5, 0.5 + 2**-19], [0.5, 0.5 + 2**-19 + 2**-23]])
    assert rounding_matters(edge, np.array([[hit, miss]] * 2), 2, 16).tolist() == [True, False]
