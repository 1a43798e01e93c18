"""NABirds."""

import os

import numpy as np

from puma_plugin.datasets.benchmark_dataset import (
    BenchmarkDataset,
    Layout,
    Location,
    Split,
    first_classes,
    read_columns,
    reading,
)
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.listing import Listing


class NABirds(BenchmarkDataset):
    """North American birds: of the 555 classes with images, in the order of their numbers, the first 278 train.

    Arguments as for every benchmark dataset. Layout: ``nabirds/{images,images.txt,image_class_labels.txt}``, as the
    archive unpacks; names come from ``classes.txt`` where it is there, else from the folders.
    """

    facts = CATALOGUE["NABirds"]
    layouts = (
        Layout(
            "archive",
            ("nabirds", "NABirds", "NABIRDS"),
            ("images.txt", "image_class_labels.txt", "images"),
            ("images",),
        ),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        images, labels, names = (
            os.path.join(location.folder, name) for name in ("images.txt", "image_class_labels.txt", "classes.txt")
        )
        path_of = dict(read_columns("NABirds", images, 2))
        with reading("NABirds", labels):
            class_of = {image: int(number) for image, number in read_columns("NABirds", labels, 2)}
        odd = path_of.keys() ^ class_of.keys()
        if odd:
            raise DatasetError(
                f"NABirds: image {min(odd)} is in only one of {images} and {labels} ({len(odd):,} such images); the "
                "two files are not of the same archive, unpack it again"
            )
        name_of = {number: f"{number:04d}" for number in class_of.values()}
        if os.path.exists(names):
            with reading("NABirds", names):
                name_of |= {int(number): name for number, name in read_columns("NABirds", names, 2)}
        keys = [f"images/{path}" for path in path_of.values()]
        listing = Listing.build(location.folder, keys, np.array([class_of[image] for image in path_of]), name_of)
        # Numbers have gaps (they are nodes of a taxonomy), so "first" counts the classes that have images.
        return first_classes(listing, listing.targets, 278, split)
