"""Time and memory of listing one's own images, as a training run does before it starts.

``python -m benchmarks.listing IMAGES`` makes so many empty files in class folders of 50 distributions, half of them for
training and half for the test, and a CSV and a Parquet manifest of the same files, all in a temporary folder. Each kind
is then listed in a process of its own, once. Prints a line of JSON for each: ``seconds`` of the clock, ``cpu_seconds``
of all threads, and ``peak_bytes`` of the whole process, of which ``before_bytes`` were there after the imports. Images
are not opened, so empty files cost the same as real ones; just written, they are in the system's cache.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.process import resident, run_apart

KINDS = ("image_folders", "csv", "parquet")
PER_CLASS = 100
_COLUMNS = ("path", "label", "split", "distribution")


def rows(images: int, distributions: int) -> Iterator[tuple[str, str, str, str]]:
    """Path, label, split and distribution of every image; the halves of a distribution share no class.

    Raises:
        ValueError: fewer than 16 images per distribution, too few for two classes of two images in each half.
    """
    if distributions < 1 or images < 16 * distributions:
        raise ValueError(
            f"{images} images in {distributions} distributions; give at least 16 for each, and one or more"
        )
    for place in range(distributions):
        mine = images // distributions + (place < images % distributions)
        per_class = min(PER_CLASS, mine // 8)
        name = f"distribution_{place:02d}"
        for half, split in enumerate(("train", "test")):
            here = (mine + half) // 2
            for number in range(here):
                # What is left over goes to the last class.
                label = f"{split}_class_{min(number // per_class, here // per_class - 1):04d}"
                yield f"{name}/{split}/{label}/image_{number:08d}.jpg", label, split, name


def make(folder: Path, images: int, distributions: int) -> None:
    """Write the files and the manifests."""
    from pyarrow import parquet, table

    made = set()
    columns: list[list[str]] = [[] for _ in _COLUMNS]
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(_COLUMNS)
        for row in rows(images, distributions):
            path = os.path.join(folder, "images", row[0])
            parent = os.path.dirname(path)
            if parent not in made:
                os.makedirs(parent)
                made.add(parent)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            writer.writerow(row)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    parquet.write_table(table(dict(zip(_COLUMNS, columns, strict=True))), folder / "manifest.parquet")


def measure_here(folder: Path, kind: str) -> dict[str, Any]:
    """List in this process, which should have done nothing else before."""
    from puma_plugin.datasets import UnifiedDataset
    from puma_plugin.experiments.data.splits import load_splits
    from puma_plugin.experiments.settings.config import DataConfig

    root = str(folder / "images")
    config = DataConfig(kind="image_folders", root=root, validation_fraction=0.0)
    if kind != "image_folders":
        if kind == "parquet":
            import pyarrow.parquet  # noqa: F401  (an import is no listing)
        manifest = str(folder / f"manifest.{kind}")
        config = DataConfig(kind="manifest", manifest=manifest, root=root, validation_fraction=0.0)
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    splits = load_splits(config)
    joined = [UnifiedDataset(part) for part in (splits.train, splits.test)]
    return {
        "kind": kind,
        "distributions": len(splits.names),
        "images": sum(map(len, joined)),
        "classes": sum(part.num_classes for part in joined),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "before_bytes": before,
        "peak_bytes": resident("VmHWM"),
    }


def main(images: int, distributions: int, kinds: list[str]) -> Iterator[dict[str, Any]]:
    """Make the data, list it in each of these ways, and remove it."""
    with tempfile.TemporaryDirectory(prefix="listing-") as name:
        make(Path(name), images, distributions)
        for kind in kinds:
            yield run_apart(kind, "benchmarks.listing", [name, "--list", kind])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description=__doc__)
    # In the measured process a folder.
    parser.add_argument("images", help="how many, at least 16 for each distribution; 1000000 for the full scale")
    parser.add_argument("--distributions", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--list", choices=KINDS, help=argparse.SUPPRESS)  # in the measured process
    given = parser.parse_args()
    if given.list:
        print(json.dumps(measure_here(Path(given.images), given.list)))
    else:
        try:
            count = int(given.images)
            next(rows(count, given.distributions))
        except ValueError as error:
            parser.error(f"images: {error}")
        for found in main(count, given.distributions, given.kinds):
            print(json.dumps(found), flush=True)
