"""Glyphs: characters of many scripts and symbols in the faces matplotlib ships. A class is a character.

Homoglyphs (Latin A, Greek Alpha, Cyrillic A) would be identical classes, so characters are deduplicated by bitmap,
after scaling to one size, in every face. Pretraining draws other scripts, none alike to a character here.
"""

from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from puma_plugin.datasets.embedded.canvas import SIZE, Array, ImageClass, blend, colour_pairs, reserve, shrink, stream
from puma_plugin.datasets.embedded.optional import matplotlib_data

FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic",
)  # fmt: skip
_SCRIPTS = {
    # Basic Latin, Latin-1 and IPA, Greek, Cyrillic, Armenian, letterlike, arrows, operators, shapes, symbols, dingbats
    "benchmark": (
        (0x21, 0x7E), (0xA1, 0xBF), (0xC6, 0xC6), (0xD0, 0xD8), (0xDE, 0xDF), (0x180, 0x1BF), (0x250, 0x2AF),
        (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x587), (0x2100, 0x214F), (0x2190, 0x21FF), (0x2200, 0x22FF),
        (0x25A0, 0x25FF), (0x2600, 0x26B2), (0x2701, 0x2775),
    ),
    # Hebrew, Arabic and its forms, N'Ko, Lao, Georgian, Canadian syllabics, Ogham, technical, box drawing, braille,
    # mathematical symbols, Tifinagh, hexagrams, tetragrams
    "pretraining": (
        (0x5D0, 0x5EA), (0x621, 0x6FF), (0x7C0, 0x7FF), (0xE80, 0xEDF), (0x10A0, 0x10FF), (0x1400, 0x167F),
        (0x1680, 0x169C), (0x2300, 0x23FF), (0x2500, 0x259F), (0x27C0, 0x2AFF), (0x2B00, 0x2B59),
        (0x2D30, 0x2D7F), (0x4DC0, 0x4DFF), (0xFB50, 0xFBFF), (0xFE70, 0xFEFC), (0x1D300, 0x1D356),
    ),
}  # fmt: skip
_LEAST_FACES = {"benchmark": 4, "pretraining": 2}
_ALIKE = 0.93
"""Two bitmaps of one size with a correlation above this count as the same character."""
_ALIKE_ACROSS = 0.75
"""The same between the benchmark and pretraining, where a look-alike of another script would leak the class."""
_CANVAS = SIZE * 2


@lru_cache(maxsize=64)
def _face(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = matplotlib_data("fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=16)
def _covered(name: str) -> frozenset[int]:
    path = matplotlib_data("fonts", "ttf", f"{name}.ttf")
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(path)).get_charmap())


def faces_of(code: int) -> list[str]:
    """Names of the faces that hold this character."""
    return [name for name in FACES if code in _covered(name)]


def bitmap(code: int, face: str, side: int = 20) -> Array:
    """The character cut to its ink and scaled to ``side`` x ``side``, as floats in 0..1 (zeros if it has no ink)."""
    mask = _draw(code, face, 64, 160)
    box = mask.getbbox()
    if box is None:
        return np.zeros((side, side), np.float32)
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX, box=box), np.float32) / 255


def _draw(code: int, face: str, size: int, canvas: int) -> Image.Image:
    mask = Image.new("L", (canvas, canvas))
    ImageDraw.Draw(mask).text((canvas / 2, canvas / 2), chr(code), fill=255, font=_face(face, size), anchor="mm")
    return mask


@lru_cache(maxsize=1)
def characters() -> dict[str, tuple[int, ...]]:
    """Code points of the "benchmark" and of the "pretraining", each character unlike every other in all its faces."""
    domains = {
        domain: [
            code for low, high in ranges for code in range(low, high + 1) if len(faces_of(code)) >= _LEAST_FACES[domain]
        ]
        for domain, ranges in _SCRIPTS.items()
    }
    codes = np.array([code for ranges in domains.values() for code in ranges])
    strange = np.arange(len(codes)) >= len(domains["benchmark"])
    dropped = np.zeros(len(codes), bool)
    for face in ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral"):
        here = np.array([i for i, code in enumerate(codes) if code in _covered(face)])
        shapes = np.stack([bitmap(int(codes[i]), face) for i in here]).reshape(len(here), -1)
        # The aspect ratio is lost by scaling to one size; scale and shear are nuisances, so that is meant.
        spread = shapes.std(axis=1)
        dropped[here[spread < 1e-3]] = True
        length = np.sqrt(shapes.shape[1]) * np.maximum(spread, 1e-6)
        shapes = (shapes - shapes.mean(axis=1, keepdims=True)) / length[:, None]
        limit = np.where(strange[here][:, None] != strange[here][None], _ALIKE_ACROSS, _ALIKE)
        alike = np.triu(shapes @ shapes.T > limit, 1)
        for first in range(len(here)):
            if not dropped[here[first]]:
                dropped[here[alike[first]]] = True
    kept = set(codes[~dropped].tolist())
    return {domain: tuple(code for code in ranges if code in kept) for domain, ranges in domains.items()}


def classes(seed: int, count: int, domain: str = "benchmark") -> list[ImageClass]:
    """``count`` characters drawn by the seed from the domain's: "benchmark", "tuning" or "pretraining"."""
    pool = characters()["pretraining"] if domain == "pretraining" else reserve(characters()["benchmark"], domain)
    if count > len(pool):
        raise ValueError(f"count must be at most {len(pool)} for domain {domain!r}, got {count}")
    order = stream(domain, seed, "glyph", 0, "order").permutation(len(pool))[:count]
    return [ImageClass(f"U+{pool[i]:04X}", partial(_render, pool[i])) for i in order]


def _render(code: int, n: int, rng: np.random.Generator) -> Array:
    faces = faces_of(code)
    # Every face before any face twice.
    picks = np.concatenate([rng.permutation(len(faces)) for _ in range(-(-n // len(faces)))])[:n]
    masks = np.empty((n, _CANVAS, _CANVAS), np.float32)
    for i in range(n):
        mask = _draw(code, faces[picks[i]], int(rng.integers(38, 49)), _CANVAS)
        box = mask.getbbox() or (0, 0, _CANVAS, _CANVAS)
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        angle, shear = rng.uniform(-0.22, 0.22), rng.uniform(-0.2, 0.2)
        # Small characters (dots, marks) are brought near the size of the others: two steps of three towards it.
        reach = max(box[2] - box[0], box[3] - box[1]) / (0.72 * _CANVAS)
        zoom = reach**0.67 / rng.uniform(0.9, 1.1)
        a, b, d, e = _pose(angle, shear, zoom)
        half = _CANVAS / 2
        ox, oy = half + rng.uniform(-5, 5, 2)
        affine = (a, b, cx - a * ox - b * oy, d, e, cy - d * ox - e * oy)
        turned = mask.transform((_CANVAS, _CANVAS), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        masks[i] = np.asarray(turned, np.float32) / 255
    return blend(shrink(masks), *colour_pairs(rng, n))


def _pose(angle: float, shear: float, zoom: float) -> tuple[float, float, float, float]:
    cos, sin = float(np.cos(angle)) * zoom, float(np.sin(angle)) * zoom
    return cos, shear * cos - sin, sin, shear * sin + cos
