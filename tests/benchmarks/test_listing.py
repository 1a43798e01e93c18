"""Listing one's own images: time and memory, by the command that measures them."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.listing import KINDS, rows

ROOT = Path(__file__).resolve().parents[2]


def listed(*arguments: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Kind -> figures that the command prints; its data is made below this folder."""
    command = [sys.executable, "-m", "benchmarks.listing", *arguments]
    environment = {"TMPDIR": str(folder), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert list(folder.iterdir()) == [], "the data was not removed"
    return {found["kind"]: found for found in map(json.loads, done.stdout.splitlines())}


def test_rows() -> None:
    made = list(rows(1003, 10))
    assert len({path for path, *_ in made}) == 1003
    assert sorted(Counter(name for *_, name in made).values()) == [100] * 7 + [101] * 3
    assert Counter(split for *_, split, _ in made) == {"train": 500, "test": 503}
    # 100 images: halves of 50 in classes of 100 // 8 = 12, whose last one takes the two that are left over.
    assert sorted(Counter(row[1] for row in made if row[3] == "distribution_09").values()) == [12] * 6 + [14] * 2
    assert max(Counter((name, label) for _, label, _, name in rows(20_000, 2)).values()) == 100
    with pytest.raises(ValueError, match="31 images in 2 distributions; give at least 16 for each"):
        next(rows(31, 2))


def test_two_thousand_images(tmp_path: Path) -> None:
    found = listed("2000", folder=tmp_path)
    assert list(found) == list(KINDS)
    for figures in found.values():
        # 40 images each: two halves of four classes.
        assert (figures["distributions"], figures["images"], figures["classes"]) == (50, 2000, 400)
        assert 0 < figures["seconds"] < 60
        assert 10e6 < figures["before_bytes"] <= figures["peak_bytes"] < 1e9


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["many"], "error: images: invalid literal for int() with base 10: 'many'"),
        (["10"], "error: images: 10 images in 50 distributions; give at least 16 for each"),
        (["100", "--distributions", "0"], "error: images: 100 images in 0 distributions"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: list[str], text: str) -> None:
    command = [sys.executable, "-m", "benchmarks.listing", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_million_images_in_fifty_distributions(tmp_path: Path) -> None:
    """In under 20 s and 1 GB, the process as a whole."""
    for figures in listed("1000000", folder=tmp_path).values():
        assert (figures["distributions"], figures["images"], figures["classes"]) == (50, 1_000_000, 10_000)
        # Processor time, as other work on the machine must not decide; on an idle one the clock shows the same.
        assert figures["cpu_seconds"] < 20
        assert figures["peak_bytes"] < 1e9
