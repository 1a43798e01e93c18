"""What the image generators share: random streams, coordinates, colours and anti-aliased drawing.

All images here are float32 in 0..1 of shape (n, height, width, 3); masks are float32 (n, height, width).
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

SIZE = 32
Array = NDArray[np.floating[Any]]
T = TypeVar("T")


class ImageClass(NamedTuple):
    """One class: a name that is unique within its distribution and domain, and a renderer of n images of it."""

    name: str
    render: Callable[[int, np.random.Generator], Array]


def reserve(items: Sequence[T], domain: str) -> list[T]:
    """A fixed set's share of a domain: every third item is for "tuning", the others are the "benchmark"'s."""
    return [item for index, item in enumerate(items) if (index % 3 == 2) == (domain == "tuning")]


def stream(domain: str, seed: int, distribution: str, index: int, purpose: str) -> np.random.Generator:
    """A random stream of its own for each (domain, seed, distribution, class, purpose).

    Classes therefore do not depend on the order or number of other classes. ``domain`` is "benchmark",
    "tuning" or "pretraining": they never share a stream, so procedural classes of one never appear in another.
    """
    words = [zlib.crc32(text.encode()) for text in (domain, distribution, purpose)]
    return np.random.default_rng(np.random.SeedSequence([*words, seed, index]))


def pixel_grid(size: int) -> Array:
    """Pixel centres as (size, size, 2) coordinates (x right, y down) in -1..1."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return np.stack(np.meshgrid(axis, axis), axis=-1)


def affine_coordinates(
    rng: np.random.Generator,
    n: int,
    size: int = SIZE,
    rotation: float = np.pi,
    scale: tuple[float, float] = (0.8, 1.1),
    shift: float = 0.1,
    shear: float = 0.0,
) -> tuple[Array, Array]:
    """Object coordinates x, y, each (n, size, size), seen by each pixel under a random affine pose per image.

    rotation: largest angle in radians; shift: largest offset, where the picture spans -1..1.
    """
    angle = rng.uniform(-rotation, rotation, n)
    zoom = 1 / rng.uniform(*scale, n)
    skew = rng.uniform(-shear, shear, n)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    offset = rng.uniform(-shift, shift, (2, n, 1, 1)).astype(np.float32)
    matrix = np.stack([cos, -sin + skew * cos, sin, cos + skew * sin]).astype(np.float32)[:, :, None, None]
    grid = pixel_grid(size)
    x, y = grid[..., 0] - offset[0], grid[..., 1] - offset[1]
    return matrix[0] * x + matrix[1] * y, matrix[2] * x + matrix[3] * y


def colours(rng: np.random.Generator, n: int) -> Array:
    """Uniform random colours (n, 3)."""
    return rng.random((n, 3), dtype=np.float32)


def colour_pairs(rng: np.random.Generator, n: int, contrast: float = 0.35) -> tuple[Array, Array]:
    """A lighter foreground and a darker background (n, 3), about ``contrast`` or more apart in mean brightness."""
    first, second = colours(rng, n), colours(rng, n)
    swap = (first.mean(1) < second.mean(1))[:, None]
    light, dark = np.where(swap, second, first), np.where(swap, first, second)
    lift = np.maximum(contrast - (light - dark).mean(1, keepdims=True), 0) / 2
    return np.clip(light + lift, 0, 1).astype(np.float32), np.clip(dark - lift, 0, 1).astype(np.float32)


def blend(mask: Array, front: Array, back: Array) -> Array:
    """``front`` where the mask is 1, ``back`` where it is 0; either is (n, 3) or (n, height, width, 3)."""
    if front.ndim == 2:
        front = front[:, None, None]
    if back.ndim == 2:
        back = back[:, None, None]
    return back + mask[..., None] * (front - back)


def edge(distance: Array, pixel: float = 2 / SIZE) -> Array:
    """Anti-aliased inside of a signed distance (positive inside) given in the -1..1 frame."""
    return np.clip(distance / np.float32(pixel) + np.float32(0.5), 0, 1)


def shrink(images: Array, factor: int = 2) -> Array:
    """Average ``factor`` x ``factor`` pixels of (n, height, width, ...)."""
    n, height, width = images.shape[:3]
    blocks = images.reshape(n, height // factor, factor, width // factor, factor, *images.shape[3:])
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def blur(images: Array, passes: int = 1) -> Array:
    """Binomial (1 2 1) smoothing along height and width of (n, height, width, 3), edges repeated."""
    for _ in range(passes):
        for axis in (1, 2):
            padding = [(1, 1) if a == axis else (0, 0) for a in range(images.ndim)]
            padded = np.pad(images, padding, mode="edge")
            count = images.shape[axis]
            low, middle, high = (np.take(padded, range(k, k + count), axis) for k in range(3))
            images = (low + 2 * middle + high) / np.float32(4)
    return images


def to_bytes(images: Array) -> NDArray[np.uint8]:
    """0..1 floats as rounded uint8."""
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)
