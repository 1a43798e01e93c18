"""The public search: ties, rows as they come, and what it says where something is missing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from puma_plugin.evaluation import nearest_neighbours, search
from puma_plugin.evaluation.search import CompiledSearcher, FaissSearcher, as_unit_rows


def test_ties_beyond_the_reservoir_limit_of_faiss() -> None:
    rng = np.random.default_rng(3)
    rows = rng.choice([-1.0, 1.0], size=(40, 16)).astype(np.float32)[rng.integers(0, 40, 3000)]
    _, found = nearest_neighbours(rows[:30], rows, 300)
    exact = rows[:30] @ rows.T
    for query in range(30):
        expected = sorted(range(3000), key=lambda i, q=query: (-exact[q, i], i))[:300]
        assert found[query].tolist() == expected


def test_unit_rows_are_kept_bit_for_bit() -> None:
    unit = torch.nn.functional.normalize(torch.randn(500, 24)).numpy()
    assert np.array_equal(as_unit_rows(unit, "rows"), unit)
    mixed = np.concatenate([unit, 3 * unit, np.zeros((1, 24), np.float32), np.full((1, 24), 1e30, np.float32)])
    lengths = np.linalg.norm(as_unit_rows(mixed, "rows").astype(float), axis=1)
    np.testing.assert_allclose(lengths[:-2], 1, atol=3e-7)
    assert lengths[-2] == 0
    assert lengths[-1] == pytest.approx(1)
    # A single one among unit rows too, and rows with a gradient.
    one_longer = np.concatenate([unit, 2 * unit[:1]])
    assert np.linalg.norm(as_unit_rows(one_longer, "rows")[-1]) == pytest.approx(1)
    assert np.array_equal(as_unit_rows(torch.from_numpy(unit).requires_grad_(), "rows"), unit)


def test_rows_of_one_column_are_the_narrowest() -> None:
    similarities, places = nearest_neighbours([[2.0], [-3.0]], [[1.0], [-1.0]], 1)
    assert places.tolist() == [[0], [1]]
    assert similarities.tolist() == [[1], [1]]
    for wrong in (np.ones(3), np.ones((3, 2, 2)), np.ones((3, 0))):
        with pytest.raises(ValueError, match="queries must"):
            nearest_neighbours(wrong, np.ones((2, 2)), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        nearest_neighbours(np.eye(2), np.eye(2), 0)


def test_nobody_asks() -> None:
    similarities, places = nearest_neighbours(np.empty((0, 2)), np.eye(2), 1)
    assert similarities.shape == places.shape == (0, 1)


def test_rows_of_a_read_only_file_are_searched_without_a_warning(tmp_path: Path) -> None:
    rows = as_unit_rows(np.random.default_rng(1).standard_normal((60, 12)), "rows")
    np.save(tmp_path / "rows.npy", rows)
    script = (
        "import sys, numpy as np\n"
        "from puma_plugin.evaluation import nearest_neighbours\n"
        "rows = np.load(sys.argv[1], mmap_mode='r')\n"
        "print(nearest_neighbours(rows, rows, 1)[1][:, 0].tolist())"
    )
    # torch warns once per process: in one of its own.
    command = [sys.executable, "-c", script, str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "not writable" not in done.stderr
    assert json.loads(done.stdout) == list(range(len(rows)))


def test_rows_of_zeros_are_similar_to_nothing() -> None:
    """By distance alone they would stand before all whose cosine is below 0.5."""
    gallery = np.vstack([np.eye(4), np.zeros(4)]).astype(np.float32)
    queries = np.array([[1, 0.3, 0.2, 0.1], [-1, -1, -1, -1], [0, 0, 0, 0]], np.float32)
    similarities, places = nearest_neighbours(queries, gallery, 5)
    assert places.tolist() == [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    expected = as_unit_rows(queries, "queries") @ gallery.T
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, places, 1), atol=1e-6)


def test_queries_in_blocks_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, ids = np.random.default_rng(4).standard_normal((600, 8)), np.arange(600) // 2
    whole = nearest_neighbours(rows, rows, 5, ids, ids)
    in_blocks = nearest_neighbours(rows, rows, 5, ids, ids, block_size=7)
    monkeypatch.setattr(search, "_PRODUCTS_AT_ONCE", 1)  # the compiled search takes 256 of them at once
    for expected, *found in zip(whole, in_blocks, nearest_neighbours(rows, rows, 5, ids, ids), strict=True):
        for one in found:
            np.testing.assert_array_equal(one, expected)
    unit = as_unit_rows(rows, "rows")
    cosines = np.where(ids[:, None] == ids, -np.inf, unit @ unit.T)
    np.testing.assert_allclose(whole[0], -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)


def test_missing_places_are_marked() -> None:
    similarities, indices = nearest_neighbours(np.eye(2), np.eye(2), 3, [0, 1], [0, 1])
    assert indices.tolist() == [[1, -1, -1], [0, -1, -1]]
    assert similarities[0].tolist() == [0.0, -np.inf, -np.inf]


@pytest.mark.parametrize("searcher", [FaissSearcher, CompiledSearcher])
def test_part_of_a_gallery_that_has_fewer_rows_than_asked_for(
    searcher: type[FaissSearcher] | type[CompiledSearcher],
) -> None:
    queries, ids = np.eye(2, 4, dtype=np.float32), np.array([30, 31])
    part = searcher(np.eye(2, 4, dtype=np.float32), np.array([30, 32]), np.array([5, 9]))
    distances, places = part.search(queries, 3, ids)
    assert places.tolist() == [[9, -1, -1], [9, 5, -1]]
    np.testing.assert_allclose(distances, [[2, np.inf, np.inf], [0, 2, np.inf]], atol=1e-6)
    nothing = searcher(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
    distances, places = nothing.search(queries, 2, ids)
    assert np.isinf(distances).all()
    assert places.tolist() == [[-1, -1]] * 2
    assert part.search(queries[:0], 3, ids[:0])[1].shape == (0, 3)


def test_missing_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"puma_plugin\[faiss-cpu\]"):
        nearest_neighbours(np.eye(2), np.eye(2), 1)


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError"])
def test_a_broken_faiss_says_why(error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # As the GPU wheel does where its CUDA libraries are missing.
    (tmp_path / "faiss.py").write_text(f"raise {error}('nvidia-cuda-runtime-cu12 is missing')")
    monkeypatch.delitem(sys.modules, "faiss")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="cannot be loaded: nvidia-cuda-runtime-cu12 is missing"):
        nearest_neighbours(np.eye(2), np.eye(2), 1)
