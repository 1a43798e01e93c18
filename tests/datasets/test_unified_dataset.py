"""UnifiedDataset: labels, ids, images, subsets, and the errors it answers with."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from puma_plugin.datasets import UnifiedDataset


class Pictures(Dataset[tuple[Any, int]]):
    """Images of the given mode and size; targets and class names as torchvision's datasets have them."""

    def __init__(self, targets: list[int], mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> None:
        self.targets = targets
        self.mode, self.size = mode, size
        self.opened = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.opened += 1
        return Image.new(self.mode, self.size, color=index), self.targets[index]


def test_classes_are_contiguous_over_all_parts() -> None:
    birds, cars = Pictures([5, 5, 9, 1, 9]), Pictures([1, 2, 1])
    cars.classes = ["zero", "audi", "bmw"]  # type: ignore[attr-defined]
    joined = UnifiedDataset({"birds": birds, "cars": cars})
    assert joined.labels.tolist() == [[1, 0], [1, 0], [2, 0], [0, 0], [2, 0], [3, 1], [4, 1], [3, 1]]
    assert joined.labels.dtype == torch.int64
    assert joined.targets.tolist() == joined.labels[:, 0].tolist()
    assert joined.class_names == ["birds/1", "birds/5", "birds/9", "cars/audi", "cars/bmw"]
    assert joined.distribution_names == ["birds", "cars"]
    assert (joined.num_classes, joined.num_distributions, len(joined)) == (5, 2, 8)
    assert joined.counts() == {"birds": (3, 5), "cars": (2, 3)}
    # Labels were read without opening an image.
    assert birds.opened == cars.opened == 0
    assert joined[7][1].tolist() == [3, 1]
    assert "cars: 2 classes, 3 items" in repr(joined)


def test_item_ids_stay_when_distributions_are_added_or_items_dropped() -> None:
    parts = {"a": Pictures([0, 1, 0]), "b": Pictures([0, 1])}
    joined = UnifiedDataset(parts)
    more = UnifiedDataset({**parts, "c": Pictures([0, 1])})
    assert len(set(more.item_ids.tolist())) == len(more)
    assert more.item_ids[:5].tolist() == joined.item_ids.tolist()
    assert joined.subset([4, 0]).item_ids.tolist() == joined.item_ids[[4, 0]].tolist()
    assert [joined.describe(i) for i in joined.item_ids.tolist()] == ["a[0]", "a[1]", "a[2]", "b[0]", "b[1]"]
    with pytest.raises(ValueError, match="does not belong"):
        joined.describe(int(more.item_ids[-1]))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_images_become_rgb(mode: str) -> None:
    joined = UnifiedDataset({"x": Pictures([0, 1], mode)})
    image, _ = joined[1]
    assert image.shape == (3, 4, 6)
    assert image.dtype == torch.float32
    expected = np.asarray(Image.new(mode, (6, 4), color=1).convert("RGB"))
    torch.testing.assert_close(image, torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255)


def test_arrays_and_tensors() -> None:
    grey = [(np.full((4, 4), 255, np.uint8), 0), (np.zeros((4, 4), np.uint8), 1)]
    tensors = TensorDataset(torch.randn(3, 3, 4, 4), torch.tensor([0, 1, 1]))
    joined = UnifiedDataset({"grey": grey, "tensors": tensors})
    assert joined[0][0].shape == (3, 4, 4)
    assert joined[0][0].min() == 1
    assert torch.equal(joined[3][0], tensors.tensors[0][1])
    images, labels = next(iter(DataLoader(joined, batch_size=5)))
    assert images.shape == (5, 3, 4, 4)
    assert labels.tolist() == joined.labels.tolist()


def test_images_of_another_kind_need_a_transform() -> None:
    joined = UnifiedDataset({"x": [("a path", 0), ("another", 1)]})
    with pytest.raises(ValueError, match=r"images must be PIL images, uint8 arrays or tensors, .*'str'.*transform"):
        joined[0]
    assert joined.with_transform(len)[1][0] == 7


def test_transform_gets_the_rgb_image() -> None:
    seen = []

    def transform(image: Image.Image) -> torch.Tensor:
        seen.append(image.mode)
        return torch.zeros(1)

    joined = UnifiedDataset({"x": Pictures([0, 1], "L")}, transform)
    assert joined[0][0].tolist() == [0]
    assert seen == ["RGB"]
    assert joined.with_transform(lambda image: image.size)[0][0] == (6, 4)


def test_mixed_sizes_need_a_transform() -> None:
    parts = {"small": Pictures([0, 1]), "large": Pictures([0, 1], size=(8, 8))}
    joined = UnifiedDataset(parts)
    joined[0]
    with pytest.raises(ValueError, match=r"large\[0\].*\(3, 8, 8\).*transform"):
        joined[2]
    resized = UnifiedDataset(parts, transforms.Compose([transforms.Resize((4, 4)), transforms.ToTensor()]))
    assert next(iter(DataLoader(resized, batch_size=4)))[0].shape == (4, 3, 4, 4)


def test_labels_through_subset_image_folder_and_argument(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4), color=i).save(tmp_path / name / f"{i}.png")
    folder = ImageFolder(str(tmp_path))
    part = Subset(folder, [5, 0, 1])

    class Silent:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, str]:
            return Image.new("RGB", (4, 4)), "no label here"

    joined = UnifiedDataset({"part": part, "silent": Silent()}, labels={"silent": [3, 4]})
    assert joined.labels.tolist() == [[1, 0], [0, 0], [0, 0], [2, 1], [3, 1]]
    assert joined.class_names[:2] == ["part/cat", "part/dog"]
    with pytest.raises(ValueError, match="does not tell its labels"):
        UnifiedDataset({"silent": Silent()})


@pytest.mark.parametrize("attribute", ["targets", "labels", "_labels"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_attributes_that_hold_labels(attribute: str, shape: tuple[int, ...]) -> None:
    class Labelled:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Image.Image, str]:
            return Image.new("RGB", (4, 4)), "no label here"

    part = Labelled()
    setattr(part, attribute, torch.tensor([7, 2, 7]).view(shape))
    assert UnifiedDataset({"x": part}).labels.tolist() == [[1, 0], [0, 0], [1, 0]]


@pytest.mark.parametrize("attribute", ["classes", "class_names"])
@pytest.mark.parametrize(
    ("listed", "names"),
    [
        (["audi", "bmw", "vw"], ["x/audi", "x/vw"]),
        (["audi", "bmw"], ["x/audi", "x/2"]),  # no name for label 2
        ({2: "vw"}, ["x/0", "x/vw"]),
    ],
)
def test_names_of_classes(attribute: str, listed: Any, names: list[str]) -> None:
    part = Pictures([2, 0, 2])
    setattr(part, attribute, listed)
    assert UnifiedDataset({"x": part}).class_names == names


def test_items_count_from_the_end_too() -> None:
    joined = UnifiedDataset({"a": Pictures([0, 1]), "b": Pictures([0, 1, 0])})
    for index in range(1, 6):
        image, label = joined[-index]
        assert torch.equal(image, joined[5 - index][0])
        assert label.tolist() == joined.labels[5 - index].tolist()
    with pytest.raises(IndexError, match="index -6 is out of range for 5 items"):
        joined[-6]


def test_origins_and_slices() -> None:
    dataset = UnifiedDataset({"a": Pictures([0, 0, 1, 1]), "b": Pictures([0, 1, 0, 1])}).subset([1, 3, 6])
    part, position = dataset.origins()
    assert (part.tolist(), position.tolist()) == ([0, 0, 1], [1, 3, 2])
    with pytest.raises(TypeError, match=r"index must be one integer, got a slice: take subset\(range"):
        dataset[0:2]  # type: ignore[index]


def test_subsets_renumber_classes_and_distributions() -> None:
    joined = UnifiedDataset({"a": Pictures([0, 1, 2]), "b": Pictures([0, 1]), "c": Pictures([0, 1])})
    part = joined.subset([2, 5, 6])
    assert part.labels.tolist() == [[0, 0], [1, 1], [2, 1]]
    assert part.distribution_names == ["a", "c"]
    assert part.class_names == ["a/2", "c/0", "c/1"]
    assert joined.select(["c", "a"]).distribution_names == ["a", "c"]
    assert joined.subset(torch.tensor([False] * 5 + [True] * 2)).distribution_names == ["c"]
    backwards = list(reversed(range(7)))  # as many numbers as a mask would have
    assert joined.subset(backwards).item_ids.tolist() == joined.item_ids.tolist()[::-1]
    assert len(joined) == 7
    for wrong in ([], [7], [-1], [0.5]):
        with pytest.raises(ValueError, match="indices"):
            joined.subset(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names"):
        joined.select(["d"])


def test_split_by_whole_classes() -> None:
    joined = UnifiedDataset({"a": Pictures([i % 10 for i in range(40)]), "b": Pictures([i % 4 for i in range(12)])})
    rest, held = joined.split_classes(0.3, seed=1)
    assert rest.counts() == {"a": (7, 28), "b": (2, 6)}
    assert held.counts() == {"a": (3, 12), "b": (2, 6)}
    assert set(rest.class_names).isdisjoint(held.class_names)
    assert sorted([*rest.item_ids.tolist(), *held.item_ids.tolist()]) == joined.item_ids.tolist()
    assert joined.split_classes(0.3, seed=1)[1].class_names == held.class_names
    # Whatever other distributions there are.
    assert joined.select(["b"]).split_classes(0.3, seed=1)[1].class_names == held.select(["b"]).class_names
    # At least two on either side.
    assert [joined.split_classes(fraction)[1].counts()["a"][0] for fraction in (0.01, 0.49, 0.99)] == [2, 5, 8]
    assert len({tuple(joined.split_classes(0.3, seed)[1].class_names) for seed in range(10)}) > 1
    with pytest.raises(ValueError, match="at least 4"):
        UnifiedDataset({"a": Pictures([0, 1, 2])}).split_classes(0.5)
    with pytest.raises(ValueError, match="fraction"):
        joined.split_classes(1.0)


def test_masks_of_parts_are_joined() -> None:
    shop = Pictures([0, 0, 1, 1])
    shop.query_mask = torch.tensor([True, False, True, False])  # type: ignore[attr-defined]
    shop.gallery_mask = ~shop.query_mask  # type: ignore[attr-defined]
    joined = UnifiedDataset({"shop": shop, "plain": Pictures([0, 1])})
    assert joined.query_mask is not None
    assert joined.query_mask.tolist() == [True, False, True, False, True, True]
    assert joined.gallery_mask is not None
    assert joined.gallery_mask.tolist() == [False, True, False, True, True, True]
    assert joined.subset([1, 4]).query_mask.tolist() == [False, True]  # type: ignore[union-attr]
    assert UnifiedDataset({"plain": Pictures([0, 1])}).query_mask is None
    for wrong in (torch.tensor([True, False]), torch.tensor([1, 0, 1, 0])):
        shop.query_mask = wrong  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"query_mask of distribution 'shop' must be bool of shape \(4,\)"):
            UnifiedDataset({"shop": shop})


def test_a_torch_subset_keeps_what_its_dataset_tells() -> None:
    shop = Pictures([0, 0, 1, 1])
    shop.query_mask = torch.tensor([True, False, True, False])  # type: ignore[attr-defined]
    shop.gallery_mask = ~shop.query_mask  # type: ignore[attr-defined]
    shop.recall_ks, shop.first_class = (10, 20), 7  # type: ignore[attr-defined]
    joined = UnifiedDataset({"shop": Subset(Subset(shop, [3, 2, 1]), [2, 0, 1])})  # items 1, 3 and 2
    assert joined.query_mask is not None
    assert joined.query_mask.tolist() == [False, False, True]
    assert joined.gallery_mask is not None
    assert joined.gallery_mask.tolist() == [True, True, False]
    assert joined.recall_ks == {"shop": (10, 20)}
    assert joined.local_classes is not None
    assert joined.local_classes.tolist() == [7, 8, 8]


def test_pickles_for_workers() -> None:
    joined = UnifiedDataset({"x": Pictures([0, 1, 1, 0])})
    assert torch.equal(pickle.loads(pickle.dumps(joined))[2][0], joined[2][0])
    batches = list(DataLoader(joined, batch_size=2, num_workers=1))
    assert torch.cat([labels for _, labels in batches]).tolist() == joined.labels.tolist()


same = Pictures([0, 1])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "non-empty mapping"),
        ([Pictures([0, 1])], "non-empty mapping"),
        ({"": Pictures([0, 1])}, "cannot name"),
        ({"a/b": Pictures([0, 1])}, "cannot name"),
        ({3: Pictures([0, 1])}, "cannot name"),
        ({"harmonic": Pictures([0, 1])}, "cannot name"),
        ({"ok\udcfe": Pictures([0, 1])}, "name of a folder that is no UTF-8, .* rename the folder"),
        ({"a": None}, "must be a dataset"),
        ({"a": Pictures([])}, "'a' is empty"),
        ({"a": same, "b": same}, "same dataset object"),
        ({"a": UnifiedDataset({"b": Pictures([0, 1]), "c": Pictures([0, 1])})}, "whose 2 distributions would become"),
        (
            {"a": Subset(Subset(UnifiedDataset({"b": Pictures([0, 1]), "c": Pictures([0, 1])}), [0, 1, 2]), [0, 2])},
            r"whose 2 distributions would become one.* take its subset\(indices\)",
        ),
        ({"a": Pictures([0, 1]), "b": Pictures([3, 3])}, "'b' has one class"),
        ({"a": Pictures([0])}, "'a' has one class"),
    ],
)
def test_wrong_parts(parts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnifiedDataset(parts)


def test_wrong_labels() -> None:
    with pytest.raises(ValueError, match="2 integers"):
        UnifiedDataset({"a": Pictures([0, 1])}, labels={"a": [0, 1, 2]})
    with pytest.raises(ValueError, match="2 integers"):
        UnifiedDataset({"a": Pictures([0, 1])}, labels={"a": [0.5, 1.5]})  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"\['b'\].*not among"):
        UnifiedDataset({"a": Pictures([0, 1])}, labels={"b": [0, 1]})
    with pytest.raises(IndexError, match="index 2 is out of range for 2 items"):
        UnifiedDataset({"a": Pictures([0, 1])})[2]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ([(0, 0.2), (0, 0.9)], r"labels of distribution 'a' must be 2 integers, got float64"),
        ([(0, "cat"), (0, "dog")], r"labels of distribution 'a' must be 2 integers, got <U3"),
        (
            [{"image": 0, "label": 1}],
            r"'a': items must be \(image, label\), got dict with the keys \['image', 'label'\]: wr",
        ),
        ([(0,), (0,)], r"'a': items must be \(image, label\), got tuple: wrap"),
    ],
)
def test_items_that_are_no_pairs_of_image_and_integer(part: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnifiedDataset({"a": part})


def test_items_that_turn_out_to_be_no_pairs_are_named() -> None:
    parts = {"a": [{"image": 0}, {"image": 1}]}
    with pytest.raises(ValueError, match=r"a\[1\]: items must be \(image, label\), got dict with the keys \['image'\]"):
        UnifiedDataset(parts, labels={"a": [0, 1]})[1]


def test_labels_may_be_tensors_and_arrays_may_have_one_channel() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    dataset = UnifiedDataset({"a": [(grey, torch.tensor(5)), (grey[..., 0], torch.tensor([2]))]})
    assert dataset.labels.tolist() == [[1, 0], [0, 0]]
    assert torch.equal(dataset[0][0], dataset[1][0])
    assert dataset[0][0].shape == (3, 3, 4)


@pytest.mark.parametrize("transform", [None, lambda image: image])
def test_arrays_that_are_no_images_are_named(transform: Any) -> None:
    wrong = np.zeros((3, 4, 3), dtype=np.float64), np.zeros((3, 4, 7), dtype=np.uint8)
    dataset = UnifiedDataset({"a": [(wrong[0], 0), (wrong[1], 1)]}, transform)
    for index, what in enumerate((r"float64 \(3, 4, 3\)", r"uint8 \(3, 4, 7\)")):
        with pytest.raises(ValueError, match=rf"a\[{index}\]: arrays must be uint8 of shape .* got {what}: convert"):
            dataset[index]


def test_an_items_label_is_its_own() -> None:
    """Changing it, as wrappers that move classes do, leaves the dataset alone, and a worker sends no other's."""
    dataset = UnifiedDataset({"a": TensorDataset(torch.zeros(6, 3, 4, 4), torch.arange(6))})
    before = dataset.labels.clone()
    for label in (dataset[3][1], dataset.with_transform(lambda image: image)[3][1]):
        label += 100
        assert label.untyped_storage().nbytes() == 16
    dataset.targets.add_(100)
    assert torch.equal(dataset.labels, before)


def test_values_of_bytes_and_of_floats_are_not_mixed() -> None:
    grey = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    parts = {"bytes": TensorDataset(grey, torch.arange(2)), "floats": TensorDataset(grey / 255, torch.arange(2))}
    dataset = UnifiedDataset(parts)
    dataset[0], dataset[1]
    with pytest.raises(ValueError, match=r"floats\[0\] is of type torch.float32, others not of floating point: in"):
        dataset[2]
    UnifiedDataset(parts, transform=lambda image: image.float())[2]


def test_labels_are_those_that_a_target_transform_gives() -> None:
    """torchvision's ``targets`` are those before it, its items those behind it."""
    fine = Pictures([11, 3, 12, 25])
    fine.classes = [f"fine {label}" for label in range(30)]  # type: ignore[attr-defined]
    fine.target_transform = lambda label: {3: 0, 11: 1, 12: 1, 25: 2}[label]  # type: ignore[attr-defined]
    joined = UnifiedDataset({"a": fine, "b": Subset(fine, [3, 1])})
    assert joined.labels.tolist() == [[1, 0], [0, 0], [1, 0], [2, 0], [4, 1], [3, 1]]
    assert joined.class_names == ["a/0", "a/1", "a/2", "b/0", "b/2"]
    # One that changes nothing leaves the names, as do labels of one's own.
    names = ["a/fine 3", "a/fine 11", "a/fine 12", "a/fine 25"]
    assert UnifiedDataset({"a": fine}, labels={"a": [11, 3, 12, 25]}).class_names == names
    fine.target_transform = int  # type: ignore[attr-defined]
    assert UnifiedDataset({"a": fine}).class_names == names
    # Items may have rows for labels; their classes are those of the targets.
    for rows in (lambda label: torch.eye(30)[label], lambda label: label / 2, str):
        fine.target_transform = rows  # type: ignore[attr-defined]
        assert UnifiedDataset({"a": fine}).class_names == names


@pytest.mark.parametrize("transform", [lambda label: label.item() // 10, lambda label: (label // 10).long()])
def test_a_target_transform_gets_the_labels_as_they_are(transform: Any) -> None:
    pictures = Pictures([11, 3, 12, 25])
    pictures.targets = torch.tensor(pictures.targets)  # type: ignore[assignment]
    pictures.target_transform = transform  # type: ignore[attr-defined]
    for dataset, expected in ((pictures, [1, 0, 1, 2]), (Subset(Subset(pictures, [3, 1, 0]), [0, 1]), [1, 0])):
        assert UnifiedDataset({"a": dataset}).targets.tolist() == expected


def test_what_a_target_transform_makes_one_class_is_refused() -> None:
    pictures = Pictures([11, 3, 12, 25])
    pictures.target_transform = lambda label: 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="distribution 'a' has one class only"):
        UnifiedDataset({"a": pictures})


def test_a_target_transform_that_fails_is_said_and_left_out() -> None:
    pictures = Pictures([11, 3, 12, 25])
    pictures.target_transform = {11: 0}.__getitem__  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r"of distribution 'a' cannot be .* \(KeyError: 3\), so its classes"):
        assert UnifiedDataset({"a": pictures}).targets.tolist() == [1, 0, 2, 3]
