"""The embedded benchmark: its table, determinism and disjoint classes."""

import hashlib
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from puma_plugin.datasets.embedded import DISTRIBUTIONS, EmbeddedBenchmark, EmbeddedDistribution, load_embedded, starve
from puma_plugin.datasets.embedded.benchmark import _generate
from puma_plugin.datasets.embedded.nuisances import NUISANCES

# classes in each split, images per class, images kept per training class when starved
TABLE = {
    "glyph": (320, 8, 8),
    "fractal": (50, 20, 20),
    "contour": (30, 22, 6),
    "texture": (15, 28, 7),
    "solid": (15, 28, 7),
    "flag": (12, 28, 7),
    "photo": (10, 20, 5),
    "digit": (5, 40, 10),
}


@pytest.fixture(scope="module")
def benchmark_zero() -> EmbeddedBenchmark:
    return load_embedded(0)


def digest(part: EmbeddedDistribution) -> str:
    return hashlib.sha256(part.images.tobytes() + part.targets.tobytes()).hexdigest()


def test_counts_are_those_of_the_table(benchmark_zero: EmbeddedBenchmark) -> None:
    assert list(benchmark_zero.train) == list(benchmark_zero.test) == list(TABLE)
    for name, (classes, images, starved) in TABLE.items():
        for part, count in ((benchmark_zero.train[name], starved), (benchmark_zero.test[name], images)):
            assert len(part.class_names) == classes
            assert part.images.shape == (classes * count, 32, 32, 3)
            assert Counter(part.targets.tolist()) == dict.fromkeys(range(classes), count)
    assert sum(map(len, benchmark_zero.train.values())) == 4134
    assert sum(map(len, benchmark_zero.test.values())) == 5796


def test_full_split_adds_images_to_the_starved_one(benchmark_zero: EmbeddedBenchmark) -> None:
    full, full_test = _generate("contour", 0)
    assert len(full) == 30 * 22
    kept = full.images.reshape(30, 22, 32, 32, 3)[:, :6].reshape(-1, 32, 32, 3)
    assert np.array_equal(kept, benchmark_zero.train["contour"].images)
    assert np.array_equal(full_test.images, benchmark_zero.test["contour"].images)
    total = sum(spec.train_classes * spec.images_per_class for spec in DISTRIBUTIONS.values())
    assert total == 5796


def test_small_distributions_keep_the_first_quarter_of_each_class() -> None:
    train, kept = {}, {}
    for name, spec in DISTRIBUTIONS.items():
        targets = np.repeat([0, 1], spec.images_per_class)
        train[name] = EmbeddedDistribution(name, np.zeros((len(targets), 1, 1, 3), np.uint8), targets, ["a", "b"])
        count = -(-spec.images_per_class // 4) if spec.starved else spec.images_per_class
        kept[name] = [str(first + place) for first in (0, spec.images_per_class) for place in range(count)]
    assert {name: images.item_keys for name, images in starve(train).items()} == kept
    # Whatever the order; and nothing more is taken of what is left.
    turned = {name: images.subset(np.arange(len(images))[::-1]) for name, images in train.items()}
    assert {name: len(images) for name, images in starve(turned).items()} == {
        name: len(keys) for name, keys in kept.items()
    }
    assert {name: images.item_keys for name, images in starve(starve(train)).items()} == kept
    assert {spec.starved for spec in DISTRIBUTIONS.values()} == {False, True}


@pytest.mark.parametrize("name", ["contour", "texture", "solid", "flag", "photo", "digit"])
def test_same_seed_same_bytes_and_another_seed_others(benchmark_zero: EmbeddedBenchmark, name: str) -> None:
    again = _generate(name, 0)
    assert digest(starve({name: again[0]})[name]) == digest(benchmark_zero.train[name])
    assert digest(again[1]) == digest(benchmark_zero.test[name])
    other = _generate(name, 1)
    assert digest(other[0]) != digest(again[0])
    assert digest(other[1]) != digest(again[1])


@pytest.mark.parametrize("name", ["glyph", "fractal"])
def test_large_distributions_render_equal_classes_equally(benchmark_zero: EmbeddedBenchmark, name: str) -> None:
    """One class rendered alone equals the same class among all others: classes do not depend on order."""
    from puma_plugin.datasets.embedded.canvas import stream, to_bytes

    spec = DISTRIBUTIONS[name]
    classes = spec.classes(0, spec.train_classes + spec.test_classes)
    index = spec.train_classes + 7
    rng = stream("benchmark", 0, name, index, "images")
    images = classes[index].render(spec.images_per_class, rng)
    for nuisance in spec.nuisances:
        images = NUISANCES[nuisance](images, rng)
    test = benchmark_zero.test[name]
    assert test.class_names[7] == classes[index].name
    assert np.array_equal(to_bytes(images), test.images[test.targets == 7])
    assert [c.name for c in spec.classes(1, 20)] != [c.name for c in classes[:20]]


def test_train_and_test_classes_are_disjoint(benchmark_zero: EmbeddedBenchmark) -> None:
    for name in TABLE:
        train, test = benchmark_zero.train[name].class_names, benchmark_zero.test[name].class_names
        assert len(set(train) | set(test)) == len(train) + len(test)


def test_no_two_images_alike_and_none_flat(benchmark_zero: EmbeddedBenchmark) -> None:
    for name in TABLE:
        images = np.concatenate([benchmark_zero.train[name].images, benchmark_zero.test[name].images])
        flat = images.reshape(len(images), -1)
        assert len(np.unique(flat, axis=0)) == len(flat), name
        assert flat.std(axis=1).min() > 1, name


def test_classes_of_a_distribution_look_different(benchmark_zero: EmbeddedBenchmark) -> None:
    """Mean pictures of two classes differ by more than two halves of one class do, in the procedural shapes."""
    for name in ("contour", "flag"):
        part = benchmark_zero.test[name]
        grey = part.images.astype(np.float64).mean(axis=3)
        # Which side is dark is random in some distributions; edges are not.
        edges = np.abs(np.diff(grey, axis=1))[:, :, :-1] + np.abs(np.diff(grey, axis=2))[:, :-1]
        count = len(part.class_names)
        halves = np.stack([[edges[part.targets == c][half::2].mean(0) for half in (0, 1)] for c in range(count)])
        within = np.abs(halves[:, 0] - halves[:, 1]).mean()
        between = np.abs(halves[:, None, 0] - halves[None, :, 1]).mean(axis=(2, 3))[~np.eye(count, dtype=bool)].mean()
        assert between > 1.1 * within, name


def test_items_are_pictures_with_labels(benchmark_zero: EmbeddedBenchmark) -> None:
    part = benchmark_zero.train["photo"]
    image, label = part[3]
    assert isinstance(image, Image.Image)
    assert image.size == (32, 32)
    assert isinstance(label, int)
    assert label == part.targets[3]
    assert np.array_equal(np.asarray(image), part.images[3])
    doubled = EmbeddedDistribution("photo", part.images, part.targets, part.class_names, lambda im: im.resize((64, 64)))
    assert doubled[3][0].size == (64, 64)
    batch = next(iter(torch.utils.data.DataLoader(doubled, batch_size=4, collate_fn=list)))
    assert [label for _, label in batch] == part.targets[:4].tolist()


@pytest.fixture(scope="module")
def tuning() -> EmbeddedBenchmark:
    return load_embedded(0, domain="tuning")


def test_the_tuning_domain_has_other_classes_than_every_benchmark_seed(tuning: EmbeddedBenchmark) -> None:
    assert list(tuning.train) == list(tuning.test) == [name for name in TABLE if name != "digit"]
    for name in tuning.train:
        classes, images, starved = TABLE[name]
        for part, count, per_class in (
            (tuning.train[name], classes, starved),
            (tuning.test[name], max(2, round(0.3 * classes)), images),
        ):
            assert Counter(part.targets.tolist()) == dict.fromkeys(range(count), per_class)
        assert not set(tuning.train[name].class_names) & set(tuning.test[name].class_names)
    # The fixed sets: with seeds enough every class of a domain has been drawn, and no class was drawn in both.
    for name, total in (("glyph", 1326), ("photo", 78)):
        drawn = {}
        for domain, count in (("benchmark", 2), ("tuning", 1)):
            size = total // 3 * count
            drawn[domain] = {made.name for made in DISTRIBUTIONS[name].classes(5, size, domain)}
            assert len(drawn[domain]) == size
        assert not drawn["benchmark"] & drawn["tuning"]
        assert {*tuning.train[name].class_names, *tuning.test[name].class_names} <= drawn["tuning"]


def test_procedural_classes_differ_between_domains(
    benchmark_zero: EmbeddedBenchmark, tuning: EmbeddedBenchmark
) -> None:
    for name in ("fractal", "contour", "texture", "solid", "flag"):
        ours = {image.tobytes() for image in benchmark_zero.test[name].images}
        assert not ours & {image.tobytes() for image in tuning.test[name].images}, name


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="domain must be 'benchmark' or 'tuning', got 'test'"):
        load_embedded(0, domain="test")  # type: ignore[arg-type]


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be a non-negative integer, got -1"):
        load_embedded(-1)


def test_distribution_checks_its_arrays() -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="images must be uint8"):
        EmbeddedDistribution("x", images.astype(np.float32), np.zeros(2, np.int64), ["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="targets must be int64"):
        EmbeddedDistribution("x", images, np.zeros(3, np.int64), ["a"])
    with pytest.raises(ValueError, match=r"targets must lie in 0..0"):
        EmbeddedDistribution("x", images, np.array([0, 1]), ["a"])


def test_subset_renumbers_classes_and_keeps_keys_and_transform() -> None:
    images = np.zeros((6, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(6)
    whole = EmbeddedDistribution("x", images, np.array([0, 0, 1, 2, 2, 2]), list("abc"), lambda im: im.getpixel((0, 0)))
    part = whole.subset(np.array([5, 0, 3]))
    assert part.targets.tolist() == [1, 0, 1]
    assert part.class_names == ["a", "c"]
    assert part.item_keys == ["5", "0", "3"]
    assert part.subset(np.array([2])).item_keys == ["3"]
    assert [part[place] for place in range(3)] == [((5, 0, 0), 1), ((0, 0, 0), 0), ((3, 0, 0), 1)]
    assert part.query_mask is part.gallery_mask is None


@pytest.mark.parametrize("name", list(NUISANCES))
def test_every_nuisance_changes_pictures_and_keeps_them_whole(name: str) -> None:
    images = np.random.default_rng(0).random((6, 32, 32, 3), dtype=np.float32)
    changed = NUISANCES[name](images.copy(), np.random.default_rng(1))
    assert changed.shape == images.shape
    assert changed.dtype == np.float32
    assert changed.min() >= -1e-6
    assert changed.max() <= 1 + 1e-6
    assert not np.array_equal(changed, images)
    if name == "channel_swap":
        assert np.array_equal(np.sort(changed, axis=3), np.sort(images, axis=3))


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from puma_plugin.datasets.embedded import glyph

    glyph.characters.cache_clear()
    glyph._covered.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'puma_plugin\[plots\]'"):
        DISTRIBUTIONS["glyph"].classes(0, 2)
