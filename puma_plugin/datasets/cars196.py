"""Cars-196."""

import os

import numpy as np

from puma_plugin.datasets.benchmark_dataset import (
    BenchmarkDataset,
    Layout,
    Location,
    Split,
    check_range,
    first_classes,
    read_mat,
    reading,
)
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.listing import Listing

_FOLDERS = ("cars196", "Cars196", "CARS196", "car196", "cars", "stanford_cars")
_CSV = ("names.csv", "anno_train.csv", "anno_test.csv")


class Cars196(BenchmarkDataset):
    """Stanford Cars: classes 1..98 train, 99..196 test. Arguments as for every benchmark dataset.

    Layouts:
        - ``cars196/{cars_annos.mat,car_ims}``: the original archive with all images in one folder;
        - ``stanford_cars/{devkit,cars_train,cars_test,cars_test_annos_withlabels.mat}``: torchvision's, parsed by its
          class;
        - ``cars196/{names.csv,anno_train.csv,anno_test.csv,car_data}``: pytorch-metric-learning's, parsed by its class.
    """

    facts = CATALOGUE["Cars196"]
    layouts = (
        Layout("original", _FOLDERS, ("cars_annos.mat", "car_ims"), ("car_ims",)),
        Layout(
            "torchvision",
            ("stanford_cars",),
            (
                "devkit/cars_meta.mat",
                "devkit/cars_train_annos.mat",
                "cars_test_annos_withlabels.mat",
                "cars_train",
                "cars_test",
            ),
            ("cars_train", "cars_test"),
            fixed_name=True,
        ),
        Layout("class folders", _FOLDERS, (*_CSV, "car_data/car_data"), ("car_data/car_data",)),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        folder = location.folder
        readers = {"original": _read_original, "torchvision": _read_torchvision, "class folders": _read_class_folders}
        annotations, keys, classes, names = readers[location.layout.name](folder)
        check_range("Cars196", annotations, classes, 196)
        return first_classes(Listing.build(folder, keys, classes, names), classes, 98, split)


_Parsed = tuple[str, list[str], np.ndarray, list[str]]


def _read_original(folder: str) -> _Parsed:
    path = os.path.join(folder, "cars_annos.mat")
    content = read_mat("Cars196", path, "annotations", "class_names")
    with reading("Cars196", path):
        annotations = np.atleast_1d(content["annotations"])
        keys = [str(name) for name in annotations["relative_im_path"]]
        classes = annotations["class"].astype(np.int64) - 1
        return path, keys, classes, [str(name) for name in np.atleast_1d(content["class_names"])]


def _read_torchvision(folder: str) -> _Parsed:
    # Imported here, as it takes a second and 170 MB that other datasets need not pay.
    from torchvision.datasets import StanfordCars

    annotations = os.path.join(folder, "devkit", "cars_train_annos.mat")
    keys, classes, names = [], [], []
    with reading("Cars196", annotations, os.path.join(folder, "cars_test_annos_withlabels.mat")):
        for part in ("train", "test"):
            # With `str` as the loader its items are (path, class), so no image is opened.
            parsed = StanfordCars(os.path.dirname(folder), split=part, loader=str)
            names = [str(name) for name in parsed.classes]
            for place in range(len(parsed)):
                path, number = parsed[place]
                keys.append(path[len(folder) + 1 :].replace(os.sep, "/"))
                classes.append(int(number))
    return annotations, keys, np.asarray(classes, np.int64), names


def _read_class_folders(folder: str) -> _Parsed:
    # Imported here, as it takes a second that other datasets need not wait for.
    from pytorch_metric_learning import datasets as pml_datasets

    names_file = os.path.join(folder, "names.csv")
    with reading("Cars196", *(os.path.join(folder, name) for name in _CSV)):
        parsed = pml_datasets.Cars196(folder, split="train+test")
        with open(names_file) as lines:
            names = [line.strip() for line in lines]
    keys = [path[len(folder) + 1 :].replace(os.sep, "/") for path in parsed.paths]
    return names_file, keys, np.asarray(parsed.labels, np.int64) - 1, names
