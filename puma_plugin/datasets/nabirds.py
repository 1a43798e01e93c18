"""NABirds."""

import os

from puma_plugin.datasets.annotation_files import read_columns, read_numbered, reading
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split, first_classes
from puma_plugin.datasets.catalogue import CATALOGUE
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
            first_line=("images.txt", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12} \d{4}/\S+"),
        ),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        keys, classes = read_numbered("NABirds", location.folder)
        name_of = {number: f"{number:04d}" for number in classes.tolist()}
        names = os.path.join(location.folder, "classes.txt")
        if os.path.exists(names):
            with reading("NABirds", names):
                name_of |= {int(number): name for number, name in read_columns("NABirds", names, 2)}
        listing = Listing.build(location.folder, keys, classes, name_of)
        # Numbers have gaps (they are nodes of a taxonomy), so "first" counts the classes that have images.
        return first_classes(listing, listing.targets, cls.facts, split)
