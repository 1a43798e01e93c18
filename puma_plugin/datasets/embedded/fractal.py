"""Fractals: attractors of iterated function systems with three affine maps. A class is one system."""

from functools import partial

import numpy as np

from puma_plugin.datasets.embedded.canvas import SIZE, Array, ImageClass, blend, colour_pairs, stream

_PARTICLES, _STEPS, _BURN_IN = 96, 34, 8


def classes(seed: int, count: int, domain: str = "benchmark", maps: int = 3) -> list[ImageClass]:
    """``count`` systems of ``maps`` contractions; ``domain`` separates the benchmark's from those of pretraining."""
    made = []
    for index in range(count):
        rng = stream(domain, seed, f"fractal{maps}", index, "class")
        angle = rng.uniform(-np.pi, np.pi, (maps, 2))
        # A matrix as rotation * diagonal * rotation; its singular values are the contraction.
        contraction = rng.uniform(0.3, 0.75, (maps, 2))
        left, right = _rotation(angle[:, 0]), _rotation(angle[:, 1])
        linear = left @ (contraction[:, :, None] * right)
        shift = rng.uniform(-1, 1, (maps, 2))
        made.append(ImageClass(f"{domain}-{seed}-{maps}-{index}", partial(_render, linear, shift)))
    return made


def _rotation(angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _render(linear: np.ndarray, shift: np.ndarray, n: int, rng: np.random.Generator) -> Array:
    maps = len(linear)
    own_linear = (linear + rng.normal(0, 0.025, (n, *linear.shape))).astype(np.float32)
    own_shift = (shift + rng.normal(0, 0.04, (n, *shift.shape))).astype(np.float32)
    choice = rng.integers(0, maps, (_STEPS, n, _PARTICLES))
    rows = np.arange(n)[:, None]
    point = np.zeros((n, _PARTICLES, 2), np.float32)
    trail = []
    for step in range(_STEPS):
        matrix = own_linear[rows, choice[step]]
        point = np.einsum("npij,npj->npi", matrix, point) + own_shift[rows, choice[step]]
        if step >= _BURN_IN:
            trail.append(point)
    points = np.concatenate(trail, axis=1)
    points = points - points.mean(axis=1, keepdims=True)
    points /= np.abs(points).max(axis=(1, 2), keepdims=True) + 1e-6
    turn = _rotation(rng.uniform(-0.4, 0.4, n)).astype(np.float32)
    points = np.einsum("nij,npj->npi", turn, points) * rng.uniform(0.75, 1.1, (n, 1, 1)).astype(np.float32)
    points += rng.uniform(-0.12, 0.12, (n, 1, 2)).astype(np.float32)
    cell = np.floor((points + 1) * (SIZE / 2)).astype(np.int64)
    inside = ((cell >= 0) & (cell < SIZE)).all(axis=2)
    flat = (rows * SIZE + cell[..., 1]) * SIZE + cell[..., 0]
    density = np.bincount(flat[inside], minlength=n * SIZE * SIZE).reshape(n, SIZE, SIZE)
    mask = np.minimum(density.astype(np.float32) / 3, 1) ** np.float32(0.6)
    return blend(mask, *colour_pairs(rng, n))
