"""No class of the benchmark is a class of pretraining, and no two characters are alike."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from puma_plugin.datasets.embedded import DISTRIBUTIONS, contour, flag, fractal, glyph, solid, texture
from puma_plugin.datasets.embedded.canvas import ImageClass, stream


@pytest.fixture(scope="module")
def families() -> dict[str, list[ImageClass]]:
    script: ModuleType
    path = Path(__file__).parents[2] / "benchmarks" / "pretrain_families.py"
    spec = importlib.util.spec_from_file_location("pretrain_families", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_families"] = script
    spec.loader.exec_module(script)
    return script.pretraining_classes(0)


def test_no_two_characters_have_the_same_bitmap() -> None:
    """Over all characters of benchmark and pretraining, in the face that holds nearly all."""
    pools = glyph.characters()
    codes = [code for pool in pools.values() for code in pool]
    assert len(codes) == len(set(codes))
    assert len(pools["benchmark"]) >= 640
    bitmaps = [glyph.bitmap(code, "DejaVuSans").tobytes() for code in codes if "DejaVuSans" in glyph.faces_of(code)]
    assert len(bitmaps) > 0.95 * len(codes)
    assert len(set(bitmaps)) == len(bitmaps)


def test_homoglyphs_are_one_class_and_faces_are_enough() -> None:
    pool = glyph.characters()["benchmark"]
    latin_greek_cyrillic = (0x41, 0x391, 0x410)
    assert sum(code in pool for code in latin_greek_cyrillic) == 1
    assert min(len(glyph.faces_of(code)) for code in pool) >= 4


def test_pretraining_has_other_classes(families: dict[str, list[ImageClass]]) -> None:
    assert sum(map(len, families.values())) > 5000
    for name, spec in DISTRIBUTIONS.items():
        for seed in (0, 1, 2):
            benchmark = {c.name for c in spec.classes(seed, spec.train_classes + spec.test_classes)}
            assert not benchmark & {c.name for c in families.get(name, [])}
    assert not set(families) & {"texture", "flag", "photo", "digit"}


def test_pretraining_characters_resemble_none_of_the_benchmark() -> None:
    pools = glyph.characters()
    shapes = {}
    for domain, pool in pools.items():
        maps = np.stack([glyph.bitmap(c, "DejaVuSans") for c in pool if "DejaVuSans" in glyph.faces_of(c)])
        flat = maps.reshape(len(maps), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        shapes[domain] = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert (shapes["benchmark"] @ shapes["pretraining"].T).max() < 0.76


@pytest.mark.parametrize("module", [contour, fractal, flag, solid, texture])
def test_domains_and_seeds_give_other_pictures(module: object) -> None:
    def picture(seed: int, domain: str) -> np.ndarray:
        made = module.classes(seed, 1, domain)[0]  # type: ignore[attr-defined]
        return made.render(2, np.random.default_rng(0))

    first = picture(0, "benchmark")
    assert np.array_equal(first, picture(0, "benchmark"))
    assert not np.allclose(first, picture(0, "pretraining"))
    assert not np.allclose(first, picture(1, "benchmark"))


def test_pretraining_pictures_are_whole(families: dict[str, list[ImageClass]]) -> None:
    for name, made in families.items():
        image = made[1].render(4, stream("pretraining", 0, name, 1, "images"))
        assert image.shape == (4, 32, 32, 3)
        assert np.isfinite(image).all()
        assert (image.std(axis=(1, 2, 3)) > 0.003).all(), name


def test_too_many_classes_are_refused() -> None:
    for name in ("glyph", "photo"):
        with pytest.raises(ValueError, match="count must be at most"):
            DISTRIBUTIONS[name].classes(0, 100_000)
