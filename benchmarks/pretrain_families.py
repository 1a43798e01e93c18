"""The procedural picture families that the embedded benchmark's backbone is pretrained on.

None of their classes is a class of the benchmark: glyph, contour and solid come from the benchmark's generators in the
"pretraining" domain (other scripts, other random streams), fractals from systems of four maps instead of three, and the
other families do not exist in the benchmark. The benchmark's nuisances are never drawn here.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from puma_plugin.datasets.embedded import contour, fractal, glyph, solid
from puma_plugin.datasets.embedded.canvas import (
    SIZE,
    Array,
    ImageClass,
    affine_coordinates,
    blend,
    blur,
    colour_pairs,
    edge,
    pixel_grid,
    shrink,
    stream,
)

DOMAIN = "pretraining"
Renderer = Callable[[int, np.random.Generator], Array]


def _pose(rng: np.random.Generator, n: int, size: int = SIZE) -> tuple[Array, Array]:
    return affine_coordinates(rng, n, size, rotation=0.35, scale=(0.8, 1.1), shift=0.12, shear=0.15)


def _recolour(rng: np.random.Generator, palette: np.ndarray, n: int, spread: float = 0.1) -> Array:
    """The palette (k, 3) as seen in n pictures (n, k, 3): a common gain per channel and a little noise per colour."""
    gain = rng.uniform(0.7, 1.2, (n, 1, 3))
    return np.clip(palette * gain + rng.normal(0, spread, (n, *palette.shape)), 0, 1).astype(np.float32)


def _paint(index: np.ndarray, palette: Array) -> Array:
    return palette[np.arange(len(index))[:, None, None], index]


def _mosaic(rng: np.random.Generator) -> Renderer:
    """A grid of coloured cells with a frame."""
    rows, columns = rng.integers(1, 6, 2)
    cells = rng.integers(0, 5, (rows, columns))
    palette = rng.random((6, 3))

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = affine_coordinates(rng, n, SIZE * 2, rotation=0.4, scale=(0.6, 1.0), shift=0.2, shear=0.3)
        row = np.clip(np.floor((y + 1) / 2 * rows), 0, rows - 1).astype(np.int64)
        column = np.clip(np.floor((x + 1) / 2 * columns), 0, columns - 1).astype(np.int64)
        colour = _recolour(rng, palette, n)
        colour[:, 5] = rng.random((n, 3))
        index = np.where((np.abs(x) < 1) & (np.abs(y) < 1), cells[row, column], 5)
        sharp = shrink(_paint(index, colour))
        return blend(rng.random((n, 1, 1), dtype=np.float32), sharp, blur(sharp, 2))

    return render


def _voronoi(rng: np.random.Generator) -> Renderer:
    """Regions around fixed sites."""
    count = int(rng.integers(4, 13))
    sites = rng.uniform(-1.1, 1.1, (count, 2))
    palette = rng.random((count, 3))

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = _pose(rng, n, SIZE * 2)
        own = (sites + rng.normal(0, 0.05, (n, count, 2))).astype(np.float32)[..., None, None]
        distance = np.stack([(x - own[:, k, 0]) ** 2 + (y - own[:, k, 1]) ** 2 for k in range(count)])
        return shrink(_paint(distance.argmin(axis=0), _recolour(rng, palette, n)))

    return render


def _cells(rng: np.random.Generator) -> Renderer:
    """A texture of cells around sites that are new in every picture."""
    count = int(rng.integers(8, 40))
    stretch, direction = rng.uniform(1, 3), rng.uniform(0, np.pi)
    mix, sharp = rng.uniform(0, 1), rng.uniform(1, 6)
    palette = rng.random((3, 3))

    def render(n: int, rng: np.random.Generator) -> Array:
        angle = (direction + rng.uniform(-0.3, 0.3, (n, 1, 1))).astype(np.float32)
        grid = pixel_grid(SIZE)
        u = np.cos(angle) * grid[..., 0] + np.sin(angle) * grid[..., 1]
        v = (np.cos(angle) * grid[..., 1] - np.sin(angle) * grid[..., 0]) * np.float32(stretch)
        sites = rng.uniform(-1.5, 1.5, (count, n, 2, 1, 1)).astype(np.float32)
        sites[:, :, 1] *= np.float32(stretch)
        distance = np.sqrt(np.stack([(u - s[:, 0]) ** 2 + (v - s[:, 1]) ** 2 for s in sites]))
        nearest = np.partition(distance, 1, axis=0)[:2]
        value = mix * nearest[0] + (1 - mix) * (nearest[1] - nearest[0])
        t = np.tanh(sharp * value * np.sqrt(count / 10))[..., None]
        colour = _recolour(rng, palette, n)[:, :, None, None]
        return colour[:, 0] + t.astype(np.float32) * (colour[:, 1] - colour[:, 0])

    return render


def _weave(rng: np.random.Generator) -> Renderer:
    """A texture of two or three waves in different directions, multiplied or added, at a random phase."""
    count = int(rng.integers(2, 4))
    direction = rng.uniform(0, np.pi) + np.arange(count) * np.pi / count + rng.uniform(-0.4, 0.4, count)
    frequency = np.exp(rng.uniform(np.log(4), np.log(16), count))
    warp, product, sharp = rng.uniform(0, 0.8), bool(rng.integers(2)), rng.uniform(0.6, 4)
    palette = rng.random((2, 3))

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = affine_coordinates(rng, n, rotation=0.35, scale=(0.8, 1.25), shift=0.0, shear=0.1)
        bend = rng.uniform(0, 2 * np.pi, (2, n, 1, 1)).astype(np.float32)
        waves = []
        for k in range(count):
            phase = rng.uniform(0, 2 * np.pi, (n, 1, 1)) + warp * np.sin(3 * x + bend[0]) * np.cos(3 * y + bend[1])
            waves.append(np.sin(frequency[k] * (np.cos(direction[k]) * x + np.sin(direction[k]) * y) + phase))
        value = np.prod(waves, axis=0) if product else np.mean(waves, axis=0)
        t = (np.tanh(sharp * value * 1.5) * 0.5 + 0.5).astype(np.float32)
        colour = _recolour(rng, palette, n)
        return blend(t, colour[:, 0], colour[:, 1])

    return render


def _doodle(rng: np.random.Generator) -> Renderer:
    """Two to four curved strokes of a pen."""
    strokes = int(rng.integers(1, 5))
    control = rng.uniform(-0.85, 0.85, (strokes, 4, 2))
    t = np.linspace(0, 1, 24)[:, None]
    basis = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = _pose(rng, n)
        own = control + rng.normal(0, 0.09, (n, *control.shape))
        points = np.einsum("tk,nskd->nstd", basis, own).reshape(n, -1, 2).astype(np.float32)[..., None, None]
        nearest = np.full_like(x, np.inf)
        for k in range(points.shape[1]):
            nearest = np.minimum(nearest, (x - points[:, k, 0]) ** 2 + (y - points[:, k, 1]) ** 2)
        width = rng.uniform(0.06, 0.2, (n, 1, 1)).astype(np.float32)
        return blend(edge(width - np.sqrt(nearest), rng.uniform(0.06, 0.2)), *colour_pairs(rng, n))

    return render


def _polygon(rng: np.random.Generator) -> Renderer:
    """A filled star-shaped polygon with another inside."""
    corners = int(rng.integers(3, 10))
    inner = int(rng.integers(3, 7))
    radii = [rng.uniform(0.35, 1.0, corners), rng.uniform(0.1, 0.35, inner)]

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = _pose(rng, n)
        angle, radius = (np.arctan2(y, x) / (2 * np.pi)) % 1, np.hypot(x, y)
        first, back = colour_pairs(rng, n)
        picture = np.broadcast_to(back[:, None, None], (*x.shape, 3))
        for reach, colour in zip(radii, (first, back), strict=True):
            own = np.abs(reach * rng.normal(1, 0.08, (n, len(reach))))
            place = angle * len(reach)
            low = np.floor(place).astype(np.int64) % len(reach)
            part = place - np.floor(place)
            rows = np.arange(n)[:, None, None]
            limit = own[rows, low] * (1 - part) + own[rows, (low + 1) % len(reach)] * part
            picture = blend(edge((limit - radius).astype(np.float32)), colour, picture)
        return picture

    return render


def _scene(rng: np.random.Generator) -> Renderer:
    """Opaque ellipses and half-planes over one another, seen through a moving window; with grain."""
    count = int(rng.integers(5, 11))
    centre, size = rng.uniform(-1.1, 1.1, (count, 2)), np.exp(rng.uniform(np.log(0.15), np.log(0.9), (count, 2)))
    turn, power = rng.uniform(0, np.pi, count), rng.choice([1.0, 2.0, 4.0], count)
    palette, soft = rng.random((count + 1, 3)) ** rng.uniform(0.5, 2), rng.uniform(0.06, 0.5, count)

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = affine_coordinates(rng, n, rotation=0.3, scale=(0.8, 1.4), shift=0.3, shear=0.1)
        colour = _recolour(rng, palette, n, 0.04)
        picture = np.broadcast_to(colour[:, -1, None, None], (*x.shape, 3))
        for k in range(count):
            cos, sin = np.float32(np.cos(turn[k])), np.float32(np.sin(turn[k]))
            dx, dy = x - np.float32(centre[k, 0]), y - np.float32(centre[k, 1])
            u, v = (cos * dx + sin * dy) / size[k, 0], (cos * dy - sin * dx) / size[k, 1]
            distance = 1 - (np.abs(u) ** power[k] + np.abs(v) ** power[k]) ** (1 / power[k])
            picture = blend(edge((distance * size[k].min()).astype(np.float32), soft[k]), colour[:, k], picture)
        return picture + rng.normal(0, rng.uniform(0, 0.06), picture.shape).astype(np.float32)

    return render


def _identicon(rng: np.random.Generator) -> Renderer:
    """A grid of on and off cells, mirrored for half of the classes."""
    side = int(rng.integers(3, 7))
    bits = rng.random((side, side)) < 0.5
    if rng.random() < 0.5:
        bits |= bits[:, ::-1]
    bits[0, 0], bits[-1, -1] = True, False

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = affine_coordinates(rng, n, SIZE * 2, rotation=0.35, scale=(0.65, 0.95), shift=0.12, shear=0.2)
        row = np.clip(np.floor((y + 1) / 2 * side), 0, side - 1).astype(np.int64)
        column = np.clip(np.floor((x + 1) / 2 * side), 0, side - 1).astype(np.int64)
        mask = (bits[row, column] & (np.abs(x) < 1) & (np.abs(y) < 1)).astype(np.float32)
        return blend(shrink(mask), *colour_pairs(rng, n))

    return render


def _tangram(rng: np.random.Generator) -> Renderer:
    """Three to six triangles of two colours at fixed places."""
    count = int(rng.integers(3, 7))
    centre = rng.uniform(-0.7, 0.7, (count, 1, 2))
    corners = centre + rng.uniform(0.15, 0.55, (count, 1, 1)) * _directions(rng, count)
    second = rng.random(count) < 0.4

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = _pose(rng, n)
        front, back = colour_pairs(rng, n)
        third = rng.random((n, 3), dtype=np.float32)
        picture = np.broadcast_to(back[:, None, None], (*x.shape, 3))
        own = (corners + rng.normal(0, 0.03, (n, *corners.shape))).astype(np.float32)[..., None, None]
        for k in range(count):
            inside = np.full_like(x, np.inf)
            for side in range(3):
                p, q = own[:, k, side], own[:, k, (side + 1) % 3]
                ex, ey = q[:, 0] - p[:, 0], q[:, 1] - p[:, 1]
                inside = np.minimum(inside, (ex * (y - p[:, 1]) - ey * (x - p[:, 0])) / np.hypot(ex, ey))
            picture = blend(edge(inside), third if second[k] else front, picture)
        return picture

    return render


def _directions(rng: np.random.Generator, count: int) -> np.ndarray:
    """Corners (count, 3, 2) of triangles on the unit circle, counter-clockwise."""
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.6, 0.6, (count, 3))
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _plasma(rng: np.random.Generator) -> Renderer:
    """A smooth field of low harmonics with a palette of its own, seen through a moving window."""
    wave = rng.normal(size=(10, 2)) * 2.2
    phase, weight = rng.uniform(0, 2 * np.pi, (3, 10)), rng.normal(size=(3, 10))
    level, contrast = rng.uniform(0.3, 0.7, 3), rng.uniform(0.1, 0.35)

    def render(n: int, rng: np.random.Generator) -> Array:
        x, y = affine_coordinates(rng, n, rotation=0.3, scale=(0.8, 1.4), shift=0.3, shear=0.15)
        angle = wave[:, 0, None, None, None] * x + wave[:, 1, None, None, None] * y
        cos, sin = np.cos(angle), np.sin(angle)
        channels = [
            np.einsum("k,knij->nij", w * np.cos(p), cos) - np.einsum("k,knij->nij", w * np.sin(p), sin)
            for w, p in zip(weight, phase, strict=True)
        ]
        picture = np.tanh(np.stack(channels, axis=-1)) * contrast + level
        picture = picture * rng.uniform(0.8, 1.2, (n, 1, 1, 3)) + rng.normal(0, 0.05, picture.shape)
        return picture.astype(np.float32)

    return render


_OWN: dict[str, tuple[Callable[[np.random.Generator], Renderer], int]] = {
    "mosaic": (_mosaic, 400), "voronoi": (_voronoi, 250), "cells": (_cells, 200), "weave": (_weave, 200),
    "doodle": (_doodle, 500), "polygon": (_polygon, 250), "scene": (_scene, 400), "identicon": (_identicon, 250),
    "tangram": (_tangram, 300), "plasma": (_plasma, 200),
}  # fmt: skip


def pretraining_classes(seed: int = 0) -> dict[str, list[ImageClass]]:
    """Family -> classes. Breadth comes before images per class; the numbers fit a run of minutes on two cores."""
    families = {
        "glyph": glyph.classes(seed, len(glyph.characters()[DOMAIN]), DOMAIN),
        "contour": contour.classes(seed, 400, DOMAIN),
        "solid": solid.classes(seed, 300, DOMAIN),
        "fractal": fractal.classes(seed, 250, DOMAIN, maps=4),
    }
    for name, (make, count) in _OWN.items():
        families[name] = [
            ImageClass(f"{DOMAIN}-{seed}-{i}", partial(_call, make(stream(DOMAIN, seed, name, i, "class"))))
            for i in range(count)
        ]
    return families


def _call(render: Renderer, n: int, rng: np.random.Generator) -> Array:
    return render(n, rng)
