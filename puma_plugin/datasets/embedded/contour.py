"""Contours: nested closed lines whose radius is a sum of harmonics of the angle. A class is one set of harmonics."""

from functools import partial

import numpy as np

from puma_plugin.datasets.embedded.canvas import (
    Array,
    ImageClass,
    affine_coordinates,
    blend,
    colour_pairs,
    edge,
    stream,
)

_ORDERS = np.arange(2, 8, dtype=np.float32)


def classes(seed: int, count: int, domain: str = "benchmark") -> list[ImageClass]:
    """``count`` contour classes; ``domain`` separates the benchmark's from those of pretraining."""
    made = []
    for index in range(count):
        rng = stream(domain, seed, "contour", index, "class")
        amplitude = (rng.normal(size=len(_ORDERS)) * 0.42 / _ORDERS**0.6).astype(np.float32)
        phase = rng.uniform(0, 2 * np.pi, len(_ORDERS)).astype(np.float32)
        made.append(ImageClass(f"{domain}-{seed}-{index}", partial(_render, amplitude, phase)))
    return made


def _render(amplitude: Array, phase: Array, n: int, rng: np.random.Generator) -> Array:
    x, y = affine_coordinates(rng, n, rotation=0.3, scale=(0.8, 1.05), shift=0.1, shear=0.12)
    angle = np.arctan2(y, x)
    jitter = rng.normal(1, 0.06, (n, len(_ORDERS))).astype(np.float32)
    reach = np.zeros_like(x)
    for k, order in enumerate(_ORDERS):
        reach += amplitude[k] * jitter[:, k, None, None] * np.cos(order * angle + phase[k])
    reach = np.exp(reach - reach.max(axis=(1, 2), keepdims=True)) * 0.95
    radius = np.hypot(x, y)
    mask = np.zeros_like(x)
    # Three copies of the outline, one inside the other; how far apart says nothing about the class.
    for low, high in ((0.95, 1.0), (0.6, 0.75), (0.25, 0.45)):
        ring = rng.uniform(low, high, (n, 1, 1)).astype(np.float32)
        width = rng.uniform(0.035, 0.07, (n, 1, 1)).astype(np.float32)
        mask = np.maximum(mask, edge(width - np.abs(radius - ring * reach)))
    return blend(mask, *colour_pairs(rng, n))
