"""Solids: convex polyhedra under random views and light. A class is one polyhedron."""

from functools import partial

import numpy as np

from puma_plugin.datasets.embedded.canvas import SIZE, Array, ImageClass, colours, pixel_grid, shrink, stream


def classes(seed: int, count: int, domain: str = "benchmark") -> list[ImageClass]:
    """``count`` polyhedra; ``domain`` separates the benchmark's from those of pretraining."""
    made = []
    for index in range(count):
        rng = stream(domain, seed, "solid", index, "class")
        faces = int(rng.integers(5, 14))
        normals = rng.normal(size=(faces, 3)) * rng.uniform(0.4, 1.6, 3)
        # A tetrahedron's normals close the body whatever the others are.
        closing = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        normals = np.concatenate([normals, closing])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        distances = np.concatenate([rng.uniform(0.3, 0.7, faces), rng.uniform(0.5, 0.9, 4)])
        tint = rng.uniform(0.75, 1.0, len(normals))
        made.append(ImageClass(f"{domain}-{seed}-{index}", partial(_render, normals, distances, tint)))
    return made


def _views(rng: np.random.Generator, n: int, tilt: float) -> np.ndarray:
    """Rotation matrices (n, 3, 3): up to 0.4 rad in the picture plane, up to ``tilt`` about the axes x and y."""
    a, b = rng.uniform(-tilt, tilt, (2, n))
    c = rng.uniform(-0.4, 0.4, n)
    zero, one = np.zeros(n), np.ones(n)
    about_x = np.array([[one, zero, zero], [zero, np.cos(a), -np.sin(a)], [zero, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), zero, np.sin(b)], [zero, one, zero], [-np.sin(b), zero, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), zero], [np.sin(c), np.cos(c), zero], [zero, zero, one]])
    x, y, z = (np.moveaxis(m, 2, 0) for m in (about_x, about_y, about_z))
    return z @ y @ x


def _render(normals: np.ndarray, distances: np.ndarray, tint: np.ndarray, n: int, rng: np.random.Generator) -> Array:
    turned = np.einsum("nij,fj->nfi", _views(rng, n, 0.5), normals).astype(np.float32)
    size = SIZE * 2
    grid = pixel_grid(size)
    offset = rng.uniform(-0.15, 0.15, (2, n, 1, 1)).astype(np.float32)
    zoom = rng.uniform(0.8, 1.2, (n, 1, 1)).astype(np.float32)
    x, y = (grid[..., 0] - offset[0]) * zoom, (grid[..., 1] - offset[1]) * zoom
    front = np.full((n, size, size), np.inf, np.float32)
    back = np.full((n, size, size), -np.inf, np.float32)
    face = np.zeros((n, size, size), np.int64)
    # Along the line of sight every half-space bounds the depth from one side; the body lies between the bounds.
    for f in range(len(normals)):
        a, b, c = (turned[:, f, k, None, None] for k in range(3))
        depth = (np.float32(distances[f]) - a * x - b * y) / np.where(np.abs(c) < 1e-4, 1e-4, c)
        towards = np.broadcast_to(c > 0, depth.shape)
        nearer = towards & (depth < front)
        front = np.where(nearer, depth, front)
        face = np.where(nearer, f, face)
        back = np.where(~towards & (depth > back), depth, back)
    light = rng.normal(size=(n, 3)) + np.array([0, 0, 2.0])
    light /= np.linalg.norm(light, axis=1, keepdims=True)
    shade = np.clip(np.einsum("nfi,ni->nf", turned, light), 0, 1) * 0.8 + 0.2
    value = np.take_along_axis((shade * tint).astype(np.float32), face.reshape(n, -1), axis=1)
    colour, ground = colours(rng, n) * 0.5 + 0.5, colours(rng, n) * 0.6
    picture = value.reshape(n, size, size, 1) * colour[:, None, None]
    return shrink(np.where((front > back)[..., None], picture, ground[:, None, None]))
