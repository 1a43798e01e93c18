"""The compiled search against the distances of every pair in float64."""

import pytest
import torch
from torch import Tensor

from puma_plugin.ops import loader

pytestmark = pytest.mark.skipif(not loader.CPU_LIBRARY.loaded, reason="the search has no plain-PyTorch form")


def unit_rows(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def search(queries: Tensor, gallery: Tensor, k: int, ids: tuple[Tensor, Tensor] | None = None,
           limits: Tensor | None = None, places: Tensor | None = None, span: tuple[int, int] | None = None,
           outside: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    packed = torch.ops.puma.pack_gallery(gallery)
    columns = *(ids or (None, None)), limits, places
    distances, positions = torch.ops.puma.nearest_neighbours(
        queries, gallery, packed, k, *columns, *(span or (0, len(gallery))), outside
    )
    assert distances.dtype == torch.float32
    assert positions.dtype == torch.int64
    return distances, positions


def all_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    return (queries.double()[:, None] - gallery.double()[None]).square().sum(dim=2)


# Around a tile's 8 queries and a panel's 48 items; k up to all items, also beyond twice the room for candidates.
SIZES = [(1, 1, 1, 1), (7, 47, 3, 5), (8, 48, 16, 48), (9, 49, 37, 10), (130, 500, 20, 3), (300, 97, 8, 97)]


@pytest.mark.parametrize(("queries", "items", "width", "k"), SIZES)
def test_finds_what_all_distances_say(queries: int, items: int, width: int, k: int) -> None:
    asked, gallery = unit_rows(queries, width, 1), unit_rows(items, width, 2)
    distances, positions = search(asked, gallery, k)
    exact = all_distances(asked, gallery)
    torch.testing.assert_close(distances.double(), exact.sort(dim=1).values[:, :k], atol=2e-6, rtol=0)
    torch.testing.assert_close(distances.double(), exact.gather(1, positions), atol=2e-6, rtol=0)
    assert all(len(set(row)) == k for row in positions.tolist())


@pytest.mark.parametrize("kind", ["unit", "cone", "clusters", "outlier", "long", "tiny", "whole numbers"])
@pytest.mark.parametrize("width", [3, 64, 385])
def test_bounds_leave_out_nothing_that_is_nearer(kind: str, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(900, width, generator=generator)
    if kind == "cone":  # nearly equal rows, far from the origin
        rows = 3 + 1e-3 * rows
    elif kind == "clusters":
        rows = torch.randn(5, width, generator=generator)[torch.arange(900) % 5] + 0.01 * rows
    elif kind == "outlier":
        rows[100] *= 1e4
    elif kind == "long":
        rows *= 1e15
    elif kind == "tiny":  # squares below the smallest normal number
        rows *= 1e-20
    elif kind == "whole numbers":
        rows = rows.round()
    else:
        rows = torch.nn.functional.normalize(rows)
    queries, gallery = rows[:70], rows[70:]
    # Nothing is left out if all are asked for.
    everything = search(queries, gallery, len(gallery))
    for k in (1, 20, 64, 65, 300):
        few = search(queries, gallery, k)
        assert torch.equal(few[0], everything[0][:, :k])
        assert torch.equal(few[1], everything[1][:, :k])


def test_equal_distances_come_by_position_wherever_the_rows_stand() -> None:
    # 12 different rows that occur again and again, over several panels and blocks of queries.
    rows = unit_rows(12, 19, 3)[torch.randint(0, 12, (700,), generator=torch.Generator().manual_seed(4))]
    distances, positions = search(rows, rows, 150)
    for line, places in zip(distances.tolist(), positions.tolist(), strict=True):
        assert list(zip(line, places, strict=True)) == sorted(zip(line, places, strict=True))
    for place in range(0, 700, 97):
        same = (rows == rows[place]).all(dim=1).nonzero()[:, 0].tolist()
        assert positions[place, : len(same)].tolist() == same
        assert distances[place, : len(same)].unique().numel() == 1


def test_own_ids_are_left_out_and_missing_places_marked() -> None:
    rows = unit_rows(5, 6, 5)
    ids = torch.tensor([7, 7, 8, 9, -1])
    distances, positions = search(rows, rows, 6, (ids, ids))
    found = [sorted(place for place in row if place >= 0) for row in positions.tolist()]
    assert found == [[2, 3, 4], [2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]]
    assert torch.equal(positions < 0, distances.isinf())
    assert (positions[:, -1] == -1).all()


def test_limits_leave_out_what_is_not_nearer() -> None:
    rows = unit_rows(200, 10, 6)
    unlimited, _ = search(rows, rows, 200)
    limits = unlimited[:, 30].clone()  # the 31st: 30 are nearer
    distances, positions = search(rows, rows, 60, limits=limits)
    assert (positions[:, :30] >= 0).all()
    assert (positions[:, 30:] == -1).all()
    assert torch.equal(distances[:, :30], unlimited[:, :30])


@pytest.mark.parametrize("limit", [0.0, -0.0, -1.0, -torch.inf, torch.nan])
def test_nothing_is_nearer_than_a_limit_that_is_not_positive(limit: float) -> None:
    rows = 1e4 * unit_rows(100, 16, 6)  # so long that -1 is within rounding
    distances, positions = search(rows, rows, 3, limits=torch.full((100,), limit))
    assert (positions == -1).all()
    assert distances.isinf().all()


@pytest.mark.parametrize("span", [(0, 200), (0, 0), (30, 31), (40, 150), (47, 49), (96, 144), (190, 200)])
def test_a_part_or_all_but_a_part_is_searched(span: tuple[int, int]) -> None:
    rows = unit_rows(200, 10, 6)
    for outside in (False, True):
        mine = torch.zeros(200, dtype=torch.bool)
        mine[slice(*span)] = True
        part = (mine ^ outside).nonzero()[:, 0]
        distances, positions = search(rows, rows, 20, span=span, outside=outside)
        expected = search(rows, rows[part], 20)
        assert torch.equal(distances, expected[0])
        assert torch.equal(positions, torch.cat([part, torch.tensor([-1])])[expected[1]])


def test_equals_come_in_the_order_of_their_places() -> None:
    rows = unit_rows(9, 19, 3)[torch.arange(90) % 9]
    places = torch.randperm(90, generator=torch.Generator().manual_seed(1)) + 4_000_000_000
    _, found = search(rows[:9], rows, 10, places=places)
    for query in range(9):
        assert found[query].tolist() == sorted(places[query::9].tolist())


def test_of_more_equals_than_asked_for_those_of_the_first_places_are_found() -> None:
    # Later panels hold earlier places.
    rows = unit_rows(9, 19, 3)[torch.arange(900) % 9]
    places = torch.arange(900).flip(0)
    for k in (1, 4, 70):
        _, found = search(rows[:9], rows, k, places=places)
        for query in range(9):
            assert found[query].tolist() == sorted(places[query::9].tolist())[:k]


@pytest.mark.parametrize("wrong", [-1, 1 << 32])
def test_places_that_are_no_numbers_of_32_bits_are_refused(wrong: int) -> None:
    rows = unit_rows(5, 4, 9)
    with pytest.raises(RuntimeError, match="less than 2\\^32"):
        search(rows, rows, 1, places=torch.tensor([0, 1, wrong, 3, 4]))


def test_nothing_to_ask_or_to_find() -> None:
    rows = unit_rows(3, 4, 7)
    assert search(rows[:0], rows, 2)[1].shape == (0, 2)
    assert search(rows, rows[:0], 2)[1].tolist() == [[-1, -1]] * 3


def test_threads_and_neighbours_in_the_batch_change_nothing() -> None:
    rows = unit_rows(333, 24, 8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = search(rows, rows, 40)
        torch.set_num_threads(3)
        several = search(rows, rows, 40)
    finally:
        torch.set_num_threads(threads)
    alone = search(rows[200:201], rows, 40)
    for first, second, single in zip(one, several, alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first[200:201], single)


def test_a_gallery_of_another_width_is_refused() -> None:
    rows = unit_rows(4, 6, 9)
    with pytest.raises(RuntimeError, match="queries' width"):
        search(rows[:, :5].contiguous(), rows, 1)
    with pytest.raises(RuntimeError, match="k >= 1"):
        search(rows, rows, 0)


def test_columns_that_do_not_fit_are_refused() -> None:
    rows = unit_rows(60, 6, 10)
    ids = torch.arange(60)
    with pytest.raises(RuntimeError, match="id of each query and gallery item"):
        search(rows, rows, 1, (ids, ids[:48]))
    with pytest.raises(RuntimeError, match="id of each query and gallery item"):
        search(rows, rows, 1, (ids[:59], ids))
    with pytest.raises(RuntimeError, match="int64 id"):
        search(rows, rows, 1, (ids.int(), ids.int()))
    with pytest.raises(RuntimeError, match="limit of each query"):
        search(rows, rows, 1, limits=torch.zeros(59))
    with pytest.raises(RuntimeError, match="place of each"):
        search(rows, rows, 1, places=ids[1:])
    with pytest.raises(RuntimeError, match="begin <= end"):
        search(rows, rows, 1, span=(3, 61))
    with pytest.raises(RuntimeError, match="float32"):
        search(rows.double(), rows, 1)
    with pytest.raises(RuntimeError, match="float32"):
        search(rows, rows.double(), 1)


def test_rows_that_are_not_finite_find_and_are_found_by_nothing() -> None:
    rows = unit_rows(50, 4, 11)
    rows[7, 2] = torch.nan
    rows[9, 0] = torch.inf
    distances, positions = search(rows, rows, 50)
    assert distances[[7, 9]].isinf().all()
    assert (positions[[7, 9]] == -1).all()
    finite = [place for place in range(50) if place not in (7, 9)]
    assert all(sorted(row) == [-1, -1, *finite] for row in positions[finite].tolist())


@pytest.mark.parametrize("width", [1, 7])
def test_rows_too_long_for_float32_distances_find_and_are_found_by_nothing(width: int) -> None:
    rows = unit_rows(100, width, 12)
    rows[:40] *= 1.1e18  # 2^60 is 1.15e18
    rows[40:43] *= -1.1e18
    rows[50:] *= 1.3e18
    distances, positions = search(rows, rows, 100)
    assert (positions[50:] == -1).all()
    assert all(sorted(row) == [*[-1] * 50, *range(50)] for row in positions[:50].tolist())
    exact = all_distances(rows[:50], rows[:50]).sort(dim=1).values
    torch.testing.assert_close(distances[:50, :50].double(), exact, atol=1e31, rtol=1e-5)
