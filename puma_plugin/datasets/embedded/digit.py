"""Digits: the 1,797 handwritten digits that scikit-learn ships (8x8, real), coloured and distorted.

A class is a digit.
"""

from functools import lru_cache, partial

import numpy as np

from puma_plugin.datasets.embedded.canvas import Array, ImageClass, affine_coordinates, blend, colour_pairs, stream


@lru_cache(maxsize=1)
def _digits() -> tuple[Array, np.ndarray]:
    from sklearn.datasets import load_digits  # slow to import

    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target


def classes(seed: int, count: int, domain: str = "benchmark") -> list[ImageClass]:
    """``count`` (at most 10) digits in a random order that depends on the seed. Every domain has the same digits."""
    images, targets = _digits()
    order = stream(domain, seed, "digit", 0, "order").permutation(10)[:count]
    return [ImageClass(f"digit-{digit}", partial(_render, images[targets == digit])) for digit in order]


def _render(examples: Array, n: int, rng: np.random.Generator) -> Array:
    chosen = np.pad(examples[rng.choice(len(examples), n, replace=False)], ((0, 0), (1, 2), (1, 2)))
    x, y = affine_coordinates(rng, n, rotation=0.35, scale=(0.7, 1.05), shift=0.15, shear=0.3)
    # Bilinear look-up; the frame of zeros takes what falls outside.
    column, row = np.clip(x * 4 + 4.5, 0, 8.999), np.clip(y * 4 + 4.5, 0, 8.999)
    left, top = column.astype(np.int64), row.astype(np.int64)
    u, v = column - left, row - top
    rows = np.arange(n)[:, None, None]
    upper = chosen[rows, top, left] * (1 - u) + chosen[rows, top, left + 1] * u
    lower = chosen[rows, top + 1, left] * (1 - u) + chosen[rows, top + 1, left + 1] * u
    mask = upper * (1 - v) + lower * v
    return blend(np.clip(mask * 1.4, 0, 1).astype(np.float32), *colour_pairs(rng, n))
