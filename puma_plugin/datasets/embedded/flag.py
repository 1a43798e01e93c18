"""Flags: layouts of stripes, crosses, triangles and emblems seen in perspective, a little out of focus.

A class is one layout with its palette.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from puma_plugin.datasets.embedded.canvas import (
    SIZE,
    Array,
    ImageClass,
    blend,
    blur,
    colours,
    pixel_grid,
    shrink,
    stream,
)

_PALETTE = np.array(
    [[0.8, 0.1, 0.15], [0.1, 0.2, 0.6], [0.95, 0.95, 0.95], [0.05, 0.5, 0.25], [0.98, 0.82, 0.1], [0.08, 0.08, 0.08]],
    np.float32,
)


class _Layout(NamedTuple):
    field: str
    bands: int
    charge: str
    emblem: str
    centre: tuple[float, float]
    size: float
    palette: np.ndarray


_FIELDS = ("horizontal", "vertical", "diagonal", "quarters", "plain")
_CHARGES = ("none", "cross", "nordic", "saltire", "hoist", "canton", "border")
_EMBLEMS = ("none", "disc", "star", "diamond", "ring", "crescent")


def classes(seed: int, count: int, domain: str = "benchmark") -> list[ImageClass]:
    """``count`` layouts, no two alike; ``domain`` separates the benchmark's from those of pretraining."""
    made = []
    for index in range(count):
        rng = stream(domain, seed, "flag", index, "class")
        centre = ((0.0, 0.0), (-0.45, 0.0), (-0.45, -0.4))[int(rng.integers(3))]
        layout = _Layout(
            str(rng.choice(_FIELDS)),
            int(rng.integers(2, 5)),
            str(rng.choice(_CHARGES)),
            str(rng.choice(_EMBLEMS)),
            centre,
            float(rng.uniform(0.25, 0.45)),
            _PALETTE[rng.permutation(len(_PALETTE))],
        )
        made.append(ImageClass(f"{domain}-{seed}-{index}", partial(_render, layout)))
    return made


def _perspective(rng: np.random.Generator, n: int, size: int) -> tuple[Array, Array]:
    """Flag coordinates (n, size, size) of each pixel under a random mild homography."""
    grid = pixel_grid(size)
    angle, zoom = rng.uniform(-0.35, 0.35, n), rng.uniform(1.0, 1.45, n)
    aspect = rng.uniform(1.2, 1.6, n)
    shift = rng.uniform(-0.12, 0.12, (n, 2))
    tilt = rng.uniform(-0.3, 0.3, (n, 2))
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom

    def column(values: np.ndarray) -> Array:
        return values.astype(np.float32)[:, None, None]

    x, y = grid[..., 0] - column(shift[:, 0]), grid[..., 1] - column(shift[:, 1])
    w = 1 + column(tilt[:, 0]) * x + column(tilt[:, 1]) * y
    return (column(cos) * x - column(sin) * y) / w, column(aspect) * (column(sin) * x + column(cos) * y) / w


def _field(layout: _Layout, x: Array, y: Array) -> np.ndarray:
    """Index into the palette for each pixel."""
    u, v = (x + 1) / 2, (y + 1) / 2
    if layout.field == "horizontal":
        return np.floor(v * layout.bands)
    if layout.field == "vertical":
        return np.floor(u * layout.bands)
    if layout.field == "diagonal":
        return np.floor((u + v) / 2 * layout.bands)
    if layout.field == "quarters":
        return (u > 0.5).astype(np.float32) + 2 * (v > 0.5) * (layout.bands > 2) + (v > 0.5) * (layout.bands == 2)
    return np.zeros_like(u)


def _charge(kind: str, x: Array, y: Array) -> np.ndarray:
    if kind == "cross":
        return (np.abs(x) < 0.17) | (np.abs(y) < 0.22)
    if kind == "nordic":
        return (np.abs(x + 0.35) < 0.15) | (np.abs(y) < 0.2)
    if kind == "saltire":
        return (np.abs(x - y) < 0.24) | (np.abs(x + y) < 0.24)
    if kind == "hoist":
        return x < -1 + 0.9 * (1 - np.abs(y))
    if kind == "canton":
        return (x < -0.1) & (y < 0)
    if kind == "border":
        return (np.abs(x) > 0.75) | (np.abs(y) > 0.7)
    return np.zeros(x.shape, bool)


def _emblem(kind: str, x: Array, y: Array) -> np.ndarray:
    """Shapes in coordinates where the emblem has radius 1."""
    radius = np.hypot(x, y)
    if kind == "disc":
        return radius < 0.9
    if kind == "star":
        sector = np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5
        return radius * (np.cos(sector) + 1.38 * np.abs(np.sin(sector))) < 1.0
    if kind == "diamond":
        return np.abs(x) + np.abs(y) < 1
    if kind == "ring":
        return np.abs(radius - 0.75) < 0.25
    if kind == "crescent":
        return (radius < 0.95) & (np.hypot(x - 0.35, y) > 0.7)
    return np.zeros(x.shape, bool)


def _render(layout: _Layout, n: int, rng: np.random.Generator) -> Array:
    x, y = _perspective(rng, n, SIZE * 2)
    index = np.clip(_field(layout, x, y), 0, 3).astype(np.int64)
    index = np.where(_charge(layout.charge, x, y), 4, index)
    emblem = _emblem(layout.emblem, (x - layout.centre[0]) / layout.size, (y - layout.centre[1]) / (1.3 * layout.size))
    index = np.where(emblem, 5, index)
    faded = np.clip(layout.palette + rng.normal(0, 0.05, (n, 6, 3)), 0, 1).astype(np.float32)
    picture = faded[np.arange(n)[:, None, None], index]
    inside = ((np.abs(x) < 1) & (np.abs(y) < 1)).astype(np.float32)
    sharp = shrink(blend(inside, picture, colours(rng, n)))
    return blend(rng.random((n, 1, 1), dtype=np.float32), sharp, blur(sharp, 2))
