"""Stanford Dogs."""

import os

import numpy as np

from puma_plugin.datasets.annotation_files import check_range, read_mat, reading
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split, first_classes
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.image_scan import scan_images, subfolders
from puma_plugin.datasets.listing import Listing

_FOLDERS = ("dogs", "Dogs", "stanford_dogs", "Stanford_Dogs", "StanfordDogs", "stanford-dogs", "stanford-dogs-dataset")
_IMAGES = ("Images", "images/Images", "images")


class StanfordDogs(BenchmarkDataset):
    """Dog breeds: classes 1..60 train, 61..120 test. Arguments as for every benchmark dataset.

    Layouts: ``dogs/{Images,file_list.mat}``, as images.tar and lists.tar unpack; or ``Images`` alone, whose folders in
    sorted order are the published classes.
    """

    facts = CATALOGUE["StanfordDogs"]
    layouts = (
        *(Layout(f"lists with {images}", _FOLDERS, ("file_list.mat", images), (images,)) for images in _IMAGES),
        # Many folders hold one called Images.
        *(Layout(f"{images} alone", _FOLDERS, (images,), (images,), fixed_name=True) for images in _IMAGES[:2]),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        folder, images = location.folder, location.layout.images[0]
        if "file_list.mat" in location.layout.required:
            path = os.path.join(folder, "file_list.mat")
            content = read_mat("StanfordDogs", path, "file_list", "labels")
            with reading("StanfordDogs", path):
                files = [str(name) for name in np.atleast_1d(content["file_list"])]
                classes = np.atleast_1d(content["labels"]).astype(np.int64) - 1
                names = {number: name.split("/")[0] for number, name in zip(classes.tolist(), files, strict=True)}
            check_range("StanfordDogs", path, classes, cls.facts.classes)
        else:
            breeds = subfolders(os.path.join(folder, images))
            files, numbers = [], []
            for number, breed in enumerate(breeds):
                found = list(scan_images(os.path.join(folder, images, breed), f"{breed}/", strict=True))
                files += found
                numbers += [number] * len(found)
            classes, names = np.array(numbers, np.int64), dict(enumerate(breeds))
        listing = Listing.build(os.path.join(folder, images), files, classes, names)
        return first_classes(listing, classes, cls.facts, split)
