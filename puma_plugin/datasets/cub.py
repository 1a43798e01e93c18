"""CUB-200-2011."""

import os

from puma_plugin.datasets.annotation_files import check_range, read_numbered
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split, first_classes
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.listing import Listing


class CUB(BenchmarkDataset):
    """Caltech-UCSD Birds: classes 1..100 train, 101..200 test. Arguments as for every benchmark dataset.

    Layout: ``CUB_200_2011/{images,images.txt,image_class_labels.txt}``, as the archive unpacks and
    pytorch-metric-learning reads it.
    """

    facts = CATALOGUE["CUB"]
    layouts = (
        Layout(
            "archive",
            ("CUB_200_2011",),
            ("images.txt", "image_class_labels.txt", "images"),
            ("images",),
            first_line=("images.txt", r"\d+ \d{3}\.[^/\s]+/\S+"),
        ),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        keys, numbers = read_numbered("CUB", location.folder)
        classes = numbers - 1
        check_range("CUB", os.path.join(location.folder, "image_class_labels.txt"), classes, cls.facts.classes)
        names = {number: key.split("/")[1] for number, key in zip(classes.tolist(), keys, strict=True)}
        return first_classes(Listing.build(location.folder, keys, classes, names), classes, cls.facts, split)
