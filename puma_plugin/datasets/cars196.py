"""Cars-196."""

import os

import numpy as np

from puma_plugin.datasets.annotation_files import check_range, read_mat, reading
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split, first_classes
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.listing import Listing

_FOLDERS = ("cars196", "Cars196", "CARS196", "car196", "cars", "stanford_cars", "stanford-cars-dataset")
_CSV = ("names.csv", "anno_train.csv", "anno_test.csv")
_CLASSES, _TRAIN = "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"
_TEST = "cars_test_annos_withlabels.mat"
# The name under which the test's labels are downloaded a second time, and passed on.
_TEST_COPY = "cars_test_annos_withlabels (1).mat"
_PARTS = ("cars_train", "cars_test")
_LABELS = "https://github.com/pytorch/vision/issues/7545"


def _elsewhere(*files: str) -> tuple[str, ...]:
    return tuple(folder + file for file in files for folder in ("", "devkit/", "car_devkit/devkit/"))


class Cars196(BenchmarkDataset):
    """Stanford Cars: classes 1..98 train, 99..196 test. Arguments as for every benchmark dataset.

    Layouts:
        - ``cars196/{cars_annos.mat,car_ims}``: the original archive with all images in one folder;
        - ``stanford_cars/{devkit,cars_train,cars_test,cars_test_annos_withlabels.mat}``: the parts of the challenge, as
          torchvision reads them and Kaggle's copy has the images. Folders may be within one of the same name
          (``cars_train/cars_train``, ``car_devkit/devkit``), annotations beside the images or in the devkit, the test's
          also called ``cars_test_annos_withlabels (1).mat``. The original's ``cars_annos.mat`` numbers other files and
          is not read;
        - ``cars196/{names.csv,anno_train.csv,anno_test.csv,car_data}``: pytorch-metric-learning's, parsed by its class.
    """

    facts = CATALOGUE["Cars196"]
    layouts = (
        Layout("original", _FOLDERS, ("cars_annos.mat", "car_ims"), ("car_ims",)),
        Layout(
            "train and test",
            _FOLDERS,
            (_CLASSES, _TRAIN, _TEST, *_PARTS),
            _PARTS,
            elsewhere={
                _CLASSES: _elsewhere("cars_meta.mat"),
                _TRAIN: _elsewhere("cars_train_annos.mat"),
                _TEST: _elsewhere(_TEST, _TEST_COPY),
            },
            labels_from=f"get the labels from {_LABELS} (car_devkit.tgz, copies of {_TEST}): no other file says what "
            "these images show, cars_annos.mat is of car_ims.tgz, which numbers them otherwise",
        ),
        Layout("class folders", _FOLDERS, (*_CSV, "car_data/car_data"), ("car_data/car_data",)),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        readers = {"original": _read_original, "train and test": _read_parts, "class folders": _read_class_folders}
        annotations, keys, classes, names = readers[location.layout.name](location)
        check_range("Cars196", annotations, classes, cls.facts.classes)
        return first_classes(Listing.build(location.folder, keys, classes, names), classes, cls.facts, split)


_Parsed = tuple[str, list[str], np.ndarray, list[str]]


def _read_original(location: Location) -> _Parsed:
    path = os.path.join(location.folder, "cars_annos.mat")
    content = read_mat("Cars196", path, "annotations", "class_names")
    with reading("Cars196", path):
        annotations = np.atleast_1d(content["annotations"])
        keys = [str(name) for name in annotations["relative_im_path"]]
        classes = annotations["class"].astype(np.int64) - 1
        return path, keys, classes, [str(name) for name in np.atleast_1d(content["class_names"])]


def _read_parts(location: Location) -> _Parsed:
    folder, layout = location.folder, location.layout
    meta, *annotations = (str(layout.find(folder, entry)) for entry in (_CLASSES, _TRAIN, _TEST))
    keys, classes = [], []
    for part, path in zip(_PARTS, annotations, strict=True):
        content = read_mat("Cars196", path, "annotations")
        images = f"{part}/{part}" if os.path.isdir(os.path.join(folder, part, part)) else part
        with reading("Cars196", path):
            rows = np.atleast_1d(content["annotations"])
            keys += [f"{images}/{name}" for name in rows["fname"]]
            classes.append(rows["class"].astype(np.int64) - 1)
    names = np.atleast_1d(read_mat("Cars196", meta, "class_names")["class_names"])
    return ", ".join(annotations), keys, np.concatenate(classes), [str(name) for name in names]


def _read_class_folders(location: Location) -> _Parsed:
    # Imported here, as it takes a second that other datasets need not wait for.
    from pytorch_metric_learning import datasets as pml_datasets

    folder = location.folder
    names_file = os.path.join(folder, "names.csv")
    with reading("Cars196", *(os.path.join(folder, name) for name in _CSV)):
        parsed = pml_datasets.Cars196(folder, split="train+test")
        with open(names_file) as lines:
            names = [line.strip() for line in lines]
    keys = [path[len(folder) + 1 :].replace(os.sep, "/") for path in parsed.paths]
    return names_file, keys, np.asarray(parsed.labels, np.int64) - 1, names
