"""Photos: crops of the sample pictures that scikit-learn and matplotlib ship (real).

A class is one place in a picture.
"""

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from puma_plugin.datasets.embedded.canvas import SIZE, Array, ImageClass, reserve, stream
from puma_plugin.datasets.embedded.optional import matplotlib_data

_CELL = 84
"""Side in pixels of the square around each place; squares do not overlap, so neither do classes."""
_LEAST_DETAIL = 16.0
"""Least standard deviation of a square's grey values (0..255): an empty sky or blurred ground has no place to know."""


@lru_cache(maxsize=1)
def _places() -> list[tuple[str, Image.Image]]:
    from sklearn import datasets  # slow to import

    folder = Path(datasets.__file__).parent / "images"
    files = [folder / "china.jpg", folder / "flower.jpg", matplotlib_data("sample_data", "grace_hopper.jpg")]
    places = []
    for file in files:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        for top in range(0, picture.height - _CELL + 1, _CELL):
            for left in range(0, picture.width - _CELL + 1, _CELL):
                cell = picture.crop((left, top, left + _CELL, top + _CELL))
                if np.asarray(cell.convert("L"), np.float32).std() >= _LEAST_DETAIL:
                    places.append((f"{file.stem}-{top}-{left}", cell))
    return places


def classes(seed: int, count: int, domain: str = "benchmark") -> list[ImageClass]:
    """``count`` places, drawn by the seed from the domain's squares with enough detail."""
    places = reserve(_places(), domain)
    if count > len(places):
        raise ValueError(
            f"count must be at most {len(places)} (squares with enough detail) for domain {domain!r}, got {count}"
        )
    order = stream(domain, seed, "photo", 0, "order").permutation(len(places))[:count]
    return [ImageClass(places[i][0], partial(_render, places[i][1])) for i in order]


def _render(cell: Image.Image, n: int, rng: np.random.Generator) -> Array:
    made = np.empty((n, SIZE, SIZE, 3), np.float32)
    for i in range(n):
        angle, side = rng.uniform(-0.25, 0.25), rng.uniform(0.5, 0.8) * _CELL
        cos, sin = np.cos(angle) * side / SIZE, np.sin(angle) * side / SIZE
        # The crop's centre keeps far enough from the border that hardly a corner falls outside.
        room = max(0.0, (_CELL - side * 1.1) / 2)
        cx, cy = _CELL / 2 + rng.uniform(-room, room, 2)
        half = SIZE / 2
        affine = (cos, -sin, cx - half * (cos - sin), sin, cos, cy - half * (sin + cos))
        crop = cell.transform((SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        made[i] = np.asarray(crop, np.float32) / 255
    gain = rng.uniform(0.7, 1.3, (n, 1, 1, 3)).astype(np.float32)
    return np.clip(made * gain + rng.normal(0, 0.03, made.shape).astype(np.float32), 0, 1)
