"""Textures: filtered noise whose spectrum, shape of contrast and palette belong to the class."""

from functools import partial
from typing import NamedTuple

import numpy as np

from puma_plugin.datasets.embedded.canvas import SIZE, Array, ImageClass, stream


class _Texture(NamedTuple):
    peaks: np.ndarray
    widths: np.ndarray
    weights: np.ndarray
    bend: float
    palette: np.ndarray


def classes(seed: int, count: int, domain: str = "benchmark") -> list[ImageClass]:
    """``count`` textures; ``domain`` separates the benchmark's from those of pretraining."""
    made = []
    for index in range(count):
        rng = stream(domain, seed, "texture", index, "class")
        bumps = int(rng.integers(2, 4))
        frequency = np.exp(rng.uniform(np.log(2.0), np.log(7.0), bumps))
        direction = rng.uniform(0, np.pi, bumps)
        texture = _Texture(
            np.stack([frequency * np.cos(direction), frequency * np.sin(direction)], 1),
            rng.uniform(0.7, 2.0, bumps),
            rng.uniform(0.5, 1.0, bumps),
            float(rng.uniform(-1, 1)),
            rng.random((3, 3)),
        )
        made.append(ImageClass(f"{domain}-{seed}-{index}", partial(_render, texture)))
    return made


def _render(texture: _Texture, n: int, rng: np.random.Generator) -> Array:
    angle, zoom = rng.uniform(-0.3, 0.3, n), rng.uniform(0.85, 1.18, n)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    peaks = np.einsum("nij,bj->nbi", turn, texture.peaks).astype(np.float32)[:, :, None, None]
    axis = (np.fft.fftfreq(SIZE) * SIZE).astype(np.float32)
    fy, fx = axis[:, None], axis[None, : SIZE // 2 + 1]
    spectrum = np.full((n, SIZE, SIZE // 2 + 1), 0.02, np.float32)
    for b in range(peaks.shape[1]):
        width = 2 * np.float32(texture.widths[b]) ** 2
        for sign in (1, -1):
            away = (fx - sign * peaks[:, b, ..., 0]) ** 2 + (fy - sign * peaks[:, b, ..., 1]) ** 2
            spectrum += np.float32(texture.weights[b]) * np.exp(-away / width)
    noise = rng.normal(size=(2, *spectrum.shape)).astype(np.float32)
    spectrum[:, 0, 0] = 0
    field: Array = np.fft.irfft2((noise[0] + 1j * noise[1]) * spectrum, s=(SIZE, SIZE)).astype(np.float32)
    field /= field.std(axis=(1, 2), keepdims=True)
    # The bend makes bright or dark spots (or an even ripple) out of the same spectrum.
    field = np.tanh(field + np.float32(texture.bend) * (field**2 - 1)) * 0.5 + 0.5
    palette = (texture.palette + rng.normal(0, 0.16, (n, 3, 3))).astype(np.float32)[:, :, None, None]
    low, middle, high = palette[:, 0], palette[:, 1], palette[:, 2]
    t = field[..., None]
    picture = np.where(t < 0.5, low + 2 * t * (middle - low), middle + (2 * t - 1) * (high - middle))
    picture = picture * rng.uniform(0.7, 1.1, (n, 1, 1, 1)) + rng.normal(0, 0.04, picture.shape)
    return np.clip(picture, 0, 1).astype(np.float32)
