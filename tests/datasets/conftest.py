"""Small copies of the benchmark's datasets, in exactly the originals' layouts: file names, columns, .mat variables.

Every maker returns what it wrote, as one ``Truth`` per image, in the order of the annotation files. The colour of an
image tells its class, so that a test can see whether a file was matched with the right label.
"""

import csv
import os
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat


@dataclass(frozen=True)
class Truth:
    """One image: its path in the dataset's folder, the published class number and the class's name."""

    path: str
    number: int
    name: str
    part: str = ""


def color_of(number: int) -> tuple[int, int, int]:
    """A colour for each of 1,000 numbers, far enough apart to survive JPEG."""
    return (number % 10 * 25, number // 10 % 10 * 25, number // 100 % 10 * 25)


def write_jpeg(path: Path, number: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), color_of(number)).convert(mode).save(path, "JPEG", quality=95)


def spread(images: int, classes: int) -> list[int]:
    """Images per class that sum to ``images``, as even as possible."""
    return [images // classes + (place < images % classes) for place in range(classes)]


def write_images(base: Path, truths: list[Truth], sizes: Sequence[int] | None) -> None:
    """Write all images; for copies in full size (``sizes`` given) the images of a class are links to one file."""
    originals: dict[int, Path] = {}
    for truth in truths:
        path = base / truth.path
        if sizes is not None and truth.number in originals:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(originals[truth.number], path)
        else:
            write_jpeg(path, truth.number % 1000)
            originals[truth.number] = path


def cells(values: list[str], shape: tuple[int, int]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def structs(rows: list[dict[str, object]]) -> np.ndarray:
    """A 1 x N struct array, as MATLAB writes one."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def make_cub(root: Path, classes: int = 200, sizes: Sequence[int] | None = None) -> list[Truth]:
    """What CUB_200_2011.tgz unpacks to."""
    base, truths = root / "CUB_200_2011", []
    for number in range(1, classes + 1):
        name = f"{number:03d}.Bird_{number}"
        count = 2 if sizes is None else sizes[number - 1]
        truths += [Truth(f"images/{name}/Bird_{number}_{i:04d}_{7000 + i}.jpg", number, name) for i in range(count)]
    write_images(base, truths, sizes)
    lines = {
        "images.txt": [truth.path.removeprefix("images/") for truth in truths],
        "image_class_labels.txt": [str(truth.number) for truth in truths],
        "train_test_split.txt": [str(place % 2) for place in range(len(truths))],
    }
    for file, values in lines.items():
        (base / file).write_text("".join(f"{place} {value}\n" for place, value in enumerate(values, 1)))
    (base / "classes.txt").write_text("".join(f"{n} {n:03d}.Bird_{n}\n" for n in range(1, classes + 1)))
    return truths


def _car_names() -> list[str]:
    names = [f"Maker Model {number} Sedan 2012" for number in range(1, 197)]
    names[122] = "Ram C/V Cargo Van Minivan 2012"
    return names


def make_cars(root: Path, folder: str = "cars196", sizes: Sequence[int] | None = None) -> list[Truth]:
    """car_ims.tgz and cars_annos.mat."""
    base, names = root / folder, _car_names()
    truths = [
        Truth(f"car_ims/{place:06d}.jpg", number, names[number - 1])
        for place, number in enumerate([n for n in range(1, 197) for _ in range(sizes[n - 1] if sizes else 2)], 1)
    ]
    write_images(base, truths, sizes)
    box = {f"bbox_{side}": np.uint8(3) for side in ("x1", "y1", "x2", "y2")}
    rows = [
        {"relative_im_path": t.path, **box, "class": np.uint8(t.number), "test": np.uint8(i % 2)}
        for i, t in enumerate(truths)
    ]
    savemat(base / "cars_annos.mat", {"annotations": structs(rows), "class_names": cells(names, (1, 196))})
    return truths


def make_cars_torchvision(root: Path) -> list[Truth]:
    """The layout of torchvision.datasets.StanfordCars: the official parts in folders of their own."""
    base, names, truths = root / "stanford_cars", _car_names(), []
    for part in ("train", "test"):
        # Both parts number their files from 1: the same names, but other cars.
        shown = range(1, 197) if part == "train" else range(196, 0, -1)
        here = [Truth(f"cars_{part}/{n:05d}.jpg", label, names[label - 1]) for n, label in enumerate(shown, 1)]
        for truth in here:
            write_jpeg(base / truth.path, truth.number)
        box = {f"bbox_{side}": np.uint8(3) for side in ("x1", "y1", "x2", "y2")}
        rows = [{**box, "class": np.uint8(t.number), "fname": os.path.basename(t.path)} for t in here]
        file = base / ("devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat")
        file.parent.mkdir(exist_ok=True)
        savemat(file, {"annotations": structs(rows)})
        truths += here
    savemat(base / "devkit/cars_meta.mat", {"class_names": cells(names, (1, 196))})
    return truths


def make_cars_class_folders(root: Path) -> list[Truth]:
    """The layout of pytorch_metric_learning.datasets.Cars196: class folders and comma-separated annotations."""
    base, names, truths = root / "cars196", _car_names(), []
    base.mkdir()
    (base / "names.csv").write_text("".join(f"{name}\n" for name in names))
    for part in ("train", "test"):
        here = [
            Truth(f"car_data/car_data/{part}/{names[n - 1].replace('/', '-')}/{n:05d}.jpg", n, names[n - 1])
            for n in range(1, 197)
        ]
        for truth in here:
            write_jpeg(base / truth.path, truth.number)
        with open(base / f"anno_{part}.csv", "w", newline="") as lines:
            csv.writer(lines).writerows([os.path.basename(t.path), 3, 4, 50, 60, t.number] for t in here)
        truths += here
    return truths


def make_sop(root: Path, train: int = 6, test: int = 4, sizes: Sequence[int] | None = None) -> list[Truth]:
    """Stanford_Online_Products.zip, with fewer products unless told."""
    base, truths = root / "Stanford_Online_Products", []
    categories = ("bicycle", "coffee_maker", "toaster")
    for number in range(1, train + test + 1):
        category = categories[number % 3]
        part = "train" if number <= train else "test"
        truths += [
            Truth(f"{category}_final/{110000 + number}_{i}.JPG", number, f"{category} {number}", part)
            for i in range(sizes[number - 1] if sizes else 2)
        ]
    write_images(base, truths, sizes)
    for part in ("train", "test"):
        with open(base / f"Ebay_{part}.txt", "w") as lines:
            lines.write("image_id class_id super_class_id path\n")
            for place, truth in enumerate(truths, 1):
                if truth.part == part:
                    lines.write(f"{place} {truth.number} {truth.number % 3 + 1} {truth.path}\n")
    return truths


def make_in_shop(
    root: Path,
    lists: str = "Eval",
    images: str = "Img",
    folder: str = "Inshop_Clothes",
    train: Sequence[int] = (3, 3, 3),
    query: Sequence[int] = (2, 2, 2),
    gallery: Sequence[int] = (2, 2, 2),
) -> list[Truth]:
    """The In-shop Clothes Retrieval Benchmark. Paths are relative to the folder that holds img.

    Args:
        train, query, gallery: images of each item; items of query and gallery are the same.
    """
    base, truths = root / folder, []
    for number in range(1, len(train) + len(query) + 1):
        item, place = f"id_{number * 7:08d}", number - 1 - len(train)
        counts = {"train": train[number - 1]} if place < 0 else {"query": query[place], "gallery": gallery[place]}
        statuses = [status for status, count in counts.items() for _ in range(count)]
        truths += [
            Truth(f"img/WOMEN/Tees_Tanks/{item}/{i:02d}_1_front.jpg", number, item, status)
            for i, status in enumerate(statuses)
        ]
    write_images(base / images, truths, None if len(truths) < 100 else train)
    (base / lists).mkdir(parents=True, exist_ok=True)
    with open(base / lists / "list_eval_partition.txt", "w") as lines:
        lines.write(f"{len(truths)}\nimage_name item_id evaluation_status\n")
        for truth in truths:
            lines.write(f"{truth.path:<72}{truth.name:<14}{truth.part}\n")
    return truths


def make_nabirds(root: Path, classes: int = 555, sizes: Sequence[int] | None = None) -> list[Truth]:
    """nabirds.tar.gz: images have identifiers, class numbers have gaps, lines are in the order of the identifiers."""
    base, generator = root / "nabirds", random.Random(0)
    rows = []
    for rank in range(classes):
        number = 295 + rank + rank // 4
        for _ in range(sizes[rank] if sizes else 2):
            image = uuid.UUID(int=generator.getrandbits(128))
            path = f"images/{number:04d}/{image.hex}.jpg"
            # Two nodes of the taxonomy may share a name.
            rows.append((str(image), Truth(path, number, f"Bird Kind {rank // 2 if rank < 2 else rank}")))
    rows.sort()
    write_images(base, [truth for _, truth in rows], sizes)
    names = {truth.number: truth.name for _, truth in rows} | {0: "Birds", 1: "Ducks, Geese, and Swans"}
    (base / "images.txt").write_text("".join(f"{i} {t.path.removeprefix('images/')}\n" for i, t in rows))
    (base / "image_class_labels.txt").write_text("".join(f"{i} {t.number}\n" for i, t in rows))
    (base / "classes.txt").write_text("".join(f"{n} {name}\n" for n, name in sorted(names.items())))
    (base / "train_test_split.txt").write_text("".join(f"{i} {place % 2}\n" for place, (i, _) in enumerate(rows)))
    return [truth for _, truth in rows]


def make_dogs(
    root: Path, folder: str = "dogs", images: str = "Images", lists: bool = True, sizes: Sequence[int] | None = None
) -> list[Truth]:
    """images.tar and lists.tar. Paths are relative to the folder of images."""
    base, truths = root / folder, []
    for number in range(1, 121):
        synset = f"n{2085620 + 37 * number:08d}"
        breed = f"{synset}-Breed_{number}"
        count = 2 if sizes is None else sizes[number - 1]
        truths += [Truth(f"{breed}/{synset}_{i + 10}.jpg", number, breed) for i in range(count)]
    write_images(base / images, truths, sizes)
    if lists:
        count = len(truths)
        content = {
            "file_list": cells([t.path for t in truths], (count, 1)),
            "annotation_list": cells([t.path.removesuffix(".jpg") for t in truths], (count, 1)),
            "labels": np.array([[t.number] for t in truths], np.uint8),
        }
        savemat(base / "file_list.mat", content)
    return truths


def make_flowers(root: Path, folder: str = "flowers", train: int = 102, test: int = 102) -> list[Truth]:
    """102flowers.tgz, imagelabels.mat and setid.mat. Images of a class are not next to each other.

    Args:
        train, test: images of classes 1..51 and 52..102.
    """
    from torchvision.datasets import Flowers102

    base = root / folder
    numbers = [place % 51 + 1 for place in range(train)] + [place % 51 + 52 for place in range(test)]
    random.Random(0).shuffle(numbers)
    truths = [Truth(f"jpg/image_{i:05d}.jpg", n, Flowers102.classes[n - 1]) for i, n in enumerate(numbers, 1)]
    write_images(base, truths, numbers if len(numbers) > 1000 else None)
    savemat(base / "imagelabels.mat", {"labels": np.array([numbers], np.uint8)})
    order = np.arange(1, len(truths) + 1, dtype=np.uint16)
    savemat(base / "setid.mat", {"trnid": order[None, 2::3], "valid": order[None, 1::3], "tstid": order[None, ::3]})
    return truths


AIRCRAFT = sorted(
    [f"Variant {n:02d}" for n in range(94)] + ["707-320", "737-200", "BAE 146-200", "BAE-125", "F/A-18", "Yak-42"]
)


def make_aircraft(root: Path, per_part: Sequence[int] = (1, 1, 1)) -> list[Truth]:
    """fgvc-aircraft-2013b.tar.gz.

    Args:
        per_part: images of each variant in train, val and test.
    """
    data = root / "fgvc-aircraft-2013b" / "data"
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    truths = []
    for number, name in enumerate(AIRCRAFT, 1):
        for part, count in zip(lists, per_part, strict=True):
            for _ in range(count):
                image = f"{len(truths) + 34309:07d}"
                truths.append(Truth(f"data/images/{image}.jpg", number, name, part))
                lists[part].append(f"{image} {name}\n")
    write_images(data.parent, truths, None if sum(per_part) < 10 else per_part)
    (data / "variants.txt").write_text("".join(f"{name}\n" for name in AIRCRAFT))
    for part, lines in lists.items():
        (data / f"images_variant_{part}.txt").write_text("".join(lines))
    (data / "images_variant_trainval.txt").write_text("".join(lists["train"] + lists["val"]))
    return truths


MAKERS: dict[str, Callable[[Path], list[Truth]]] = {
    "CUB": make_cub,
    "Cars196": make_cars,
    "StanfordOnlineProducts": make_sop,
    "InShop": make_in_shop,
    "NABirds": make_nabirds,
    "StanfordDogs": make_dogs,
    "Flowers102": make_flowers,
    "FGVCAircraft": make_aircraft,
}


def make_everything(root: Path) -> None:
    """All eight datasets with the published number of classes and images (Dogs' split is not published)."""
    make_cub(root, sizes=[*spread(5864, 100), *spread(5924, 100)])
    make_cars(root, sizes=[*spread(8054, 98), *spread(8131, 98)])
    make_sop(root, 11318, 11316, sizes=[*spread(59551, 11318), *spread(60502, 11316)])
    make_in_shop(root, train=spread(25882, 3997), query=spread(14218, 3985), gallery=spread(12612, 3985))
    make_nabirds(root, sizes=[*spread(22909, 278), *spread(25653, 277)])
    make_dogs(root, sizes=spread(20580, 120))
    make_flowers(root, train=3493, test=4696)
    make_aircraft(root, (34, 33, 33))


class Trees:
    """The makers, as tests reach them."""

    makers = MAKERS
    everything = staticmethod(make_everything)
    color_of = staticmethod(color_of)
    write_jpeg = staticmethod(write_jpeg)
    cub = staticmethod(make_cub)
    cars = staticmethod(make_cars)
    cars_torchvision = staticmethod(make_cars_torchvision)
    cars_class_folders = staticmethod(make_cars_class_folders)
    sop = staticmethod(make_sop)
    in_shop = staticmethod(make_in_shop)
    nabirds = staticmethod(make_nabirds)
    dogs = staticmethod(make_dogs)
    flowers = staticmethod(make_flowers)
    aircraft = staticmethod(make_aircraft)


@pytest.fixture(scope="session")
def trees() -> type[Trees]:
    return Trees


@dataclass(frozen=True)
class BenchmarkTree:
    """A folder with all eight datasets (all classes; of the two with thousands of classes, a few) and what is in it."""

    root: Path
    truths: dict[str, list[Truth]]


@pytest.fixture(scope="session")
def benchmark_tree(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkTree:
    """Read only."""
    root = tmp_path_factory.mktemp("benchmark")
    return BenchmarkTree(root, {name: make(root) for name, make in MAKERS.items()})
