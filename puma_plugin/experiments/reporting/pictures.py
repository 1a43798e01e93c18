"""Query images with their nearest neighbours, framed right or wrong, as HTML with the images inside."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image

_SIDE = 104  # pixels; larger pictures are reduced to this, twice the size they are shown at


@dataclass
class Neighbour:
    """One retrieved image (H, W, 3) uint8: of the query's class or not, and of which distribution."""

    image: np.ndarray
    right: bool
    distribution: str


@dataclass
class Query:
    """A query image (H, W, 3) uint8 and, per method, its neighbours, nearest first."""

    distribution: str
    image: np.ndarray
    neighbours: dict[str, Sequence[Neighbour]] = field(default_factory=dict)


def data_uri(image: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a data URI: PNG when small, JPEG when it had to be reduced.

    Raises:
        ValueError: for another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image has shape {image.shape} and dtype {image.dtype}; a (H, W, 3) uint8 picture is needed")
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    if max(picture.size) > _SIDE:
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(buffer, format="JPEG", quality=85)
        kind = "jpeg"
    else:
        picture.save(buffer, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _tile(image: np.ndarray, kind: str, text: str, mark: str = "") -> str:
    badge = f"<i>{mark}</i>" if mark else ""
    text = escape(text)
    return f'<div class="tile {kind}" title="{text}"><img src="{data_uri(image)}" alt="{text}">{badge}</div>'


def _strip(query: Query, label: str, neighbours: Sequence[Neighbour], first: bool) -> str:
    lead = (
        _tile(query.image, "query", f"query, {query.distribution}") if first else '<div class="tile query empty"></div>'
    )
    tiles = "".join(
        _tile(
            item.image,
            "right" if item.right else "wrong",
            f"{'right' if item.right else 'wrong'} class, {item.distribution}",
            "✓" if item.right else "✗",
        )
        for item in neighbours
    )
    large = " photo" if max(query.image.shape[:2]) > 64 else ""
    return f'<div class="strip{large}"><div class="who">{escape(label)}</div>{lead}{tiles}</div>'


def query_html(queries: Sequence[Query]) -> str:
    """The queries grouped by distribution, in the order in which the distributions first appear."""
    groups: dict[str, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.distribution, []).append(query)
    parts = []
    for name, group in groups.items():
        rows = []
        for query in group:
            strips = [
                _strip(query, label, neighbours, index == 0)
                for index, (label, neighbours) in enumerate(query.neighbours.items())
            ]
            rows.append(f'<div class="pair">{"".join(strips)}</div>')
        parts.append(f'<h3>{escape(name)}</h3><div class="queries">{"".join(rows)}</div>')
    return "".join(parts)
