"""Rows of equal marks give a query the same distances, whatever it is."""

import faiss
import numpy as np
import pytest

from puma_plugin.evaluation.rounding_marks import rounding_marks


@pytest.mark.parametrize(("items", "width"), [(1500, 128), (1024, 33), (7, 256)])
def test_equal_marks_mean_equal_distances(items: int, width: int) -> None:
    rng = np.random.default_rng(width)
    rows = rng.standard_normal(width) + 0.7 * rng.standard_normal((items + 1, width))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    found: dict[int, bytes] = {}
    for size in (1024, 4100):
        distances, _ = faiss.knn(np.repeat(rows[:1], size, axis=0), rows[1:], items)
        for mark, row in zip(rounding_marks(size, items, width).tolist(), distances, strict=True):
            assert found.setdefault(mark, row.tobytes()) == row.tobytes()


def test_marks_of_some_rows_are_those_among_all() -> None:
    rows = np.array([0, 5, 6, 1021, 2999])
    assert rounding_marks(3000, 1300, 96, rows).tolist() == rounding_marks(3000, 1300, 96)[rows].tolist()


@pytest.mark.parametrize(
    ("setting", "value"), [("distance_compute_blas_threshold", 10**9), ("distance_compute_blas_query_bs", 301)]
)
def test_marks_are_measured_again_when_a_setting_of_faiss_changes(setting: str, value: int) -> None:
    rounding_marks(1024, 701, 200)
    standard = getattr(faiss.cvar, setting)
    setattr(faiss.cvar, setting, value)
    try:
        measured = rounding_marks(1024, 701, 200, np.arange(1024))
        assert rounding_marks(1024, 701, 200).tolist() == measured.tolist()
    finally:
        setattr(faiss.cvar, setting, standard)
