"""Nuisances laid over the benchmark's images. None of them occurs in the backbone's pretraining.

Without them the frozen features of a broadly pretrained backbone are as good as anything trained on top, and the
benchmark could not tell one method from another. Each takes images (n, 32, 32, 3) in 0..1 and a random stream.
"""

from collections.abc import Callable

import numpy as np

from puma_plugin.datasets.embedded.canvas import SIZE, Array, blend, colours, edge, pixel_grid

Nuisance = Callable[[Array, np.random.Generator], Array]


def stripes(images: Array, rng: np.random.Generator) -> Array:
    """Half-transparent parallel bars of one random colour, direction and period per image."""
    n = len(images)
    grid = pixel_grid(SIZE)
    angle = rng.uniform(0, np.pi, (n, 1, 1)).astype(np.float32)
    period = rng.uniform(0.3, 0.7, (n, 1, 1)).astype(np.float32)
    phase = rng.uniform(0, 1, (n, 1, 1)).astype(np.float32)
    along = (np.cos(angle) * grid[..., 0] + np.sin(angle) * grid[..., 1]) / period + phase
    wave = 0.25 - np.abs(along - np.floor(along) - 0.5)
    opacity = rng.uniform(0.35, 0.7, (n, 1, 1)).astype(np.float32)
    return blend(edge(wave * period) * opacity, colours(rng, n), images)


def lines(images: Array, rng: np.random.Generator) -> Array:
    """Three straight lines of random place, direction and colour."""
    n = len(images)
    grid = pixel_grid(SIZE)
    for _ in range(3):
        angle = rng.uniform(0, np.pi, (n, 1, 1)).astype(np.float32)
        place = rng.uniform(-0.7, 0.7, (n, 1, 1)).astype(np.float32)
        width = rng.uniform(0.04, 0.08, (n, 1, 1)).astype(np.float32)
        distance = np.abs(np.cos(angle) * grid[..., 0] + np.sin(angle) * grid[..., 1] - place)
        images = blend(edge(width - distance), colours(rng, n), images)
    return images


def salt(images: Array, rng: np.random.Generator) -> Array:
    """A tenth of the pixels, black or white."""
    hit = (rng.random(images.shape[:3], dtype=np.float32) < 0.1).astype(np.float32)
    value = np.repeat((rng.random(images.shape[:3]) < 0.5)[..., None], 3, axis=-1).astype(np.float32)
    return blend(hit, value, images)


def channel_swap(images: Array, rng: np.random.Generator) -> Array:
    """A random order of red, green and blue per image."""
    order = rng.permuted(np.tile(np.arange(3), (len(images), 1)), axis=1)
    return np.take_along_axis(images, order[:, None, None, :], axis=3)


def gradient(images: Array, rng: np.random.Generator) -> Array:
    """A linear ramp towards a random colour across the picture."""
    n = len(images)
    grid = pixel_grid(SIZE)
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
    ramp = 0.5 + 0.45 * (np.cos(angle) * grid[..., 0] + np.sin(angle) * grid[..., 1])
    strength = rng.uniform(0.5, 0.9, (n, 1, 1)).astype(np.float32)
    return blend(np.clip(ramp, 0, 1) * strength, colours(rng, n), images)


def discs(images: Array, rng: np.random.Generator) -> Array:
    """Three opaque discs of random place, size and colour."""
    n = len(images)
    grid = pixel_grid(SIZE)
    for _ in range(3):
        centre = rng.uniform(-0.9, 0.9, (2, n, 1, 1)).astype(np.float32)
        radius = rng.uniform(0.12, 0.3, (n, 1, 1)).astype(np.float32)
        distance = np.hypot(grid[..., 0] - centre[0], grid[..., 1] - centre[1])
        images = blend(edge(radius - distance), colours(rng, n), images)
    return images


NUISANCES: dict[str, Nuisance] = {
    "stripes": stripes,
    "lines": lines,
    "salt": salt,
    "channel_swap": channel_swap,
    "gradient": gradient,
    "discs": discs,
}
