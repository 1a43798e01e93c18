"""CUB-200-2011."""

import os

import numpy as np

from puma_plugin.datasets.benchmark_dataset import (
    BenchmarkDataset,
    Layout,
    Location,
    Split,
    first_classes,
    reading,
)
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.listing import Listing


class CUB(BenchmarkDataset):
    """Caltech-UCSD Birds: classes 1..100 train, 101..200 test. Arguments as for every benchmark dataset.

    Layout: ``CUB_200_2011/{images,images.txt,image_class_labels.txt}``, as the archive unpacks and as
    pytorch-metric-learning reads it (its class parses the lists).
    """

    facts = CATALOGUE["CUB"]
    layouts = (
        Layout(
            "archive",
            ("CUB_200_2011",),
            ("images.txt", "image_class_labels.txt", "images"),
            ("images",),
            fixed_name=True,
        ),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        # Imported here, as it takes a second that other datasets need not wait for.
        from pytorch_metric_learning import datasets as pml_datasets

        folder = location.folder
        labels = os.path.join(folder, "image_class_labels.txt")
        with reading("CUB", os.path.join(folder, "images.txt"), labels):
            parsed = pml_datasets.CUB(os.path.dirname(folder), split="train+test")
            with open(labels) as lines:
                listed = sum(1 for line in lines if line.strip())
        if len(parsed.paths) != listed:
            raise DatasetError(
                f"CUB: {labels} has {listed:,} lines, of which {len(parsed.paths):,} agree with images.txt and have a "
                "class number from 1 to 200; the two files are not of the same archive, unpack it again"
            )
        keys = [path[len(folder) + 1 :].replace(os.sep, "/") for path in parsed.paths]
        classes = np.asarray(parsed.labels, np.int64) - 1
        names = {number: key.split("/")[1] for number, key in zip(classes.tolist(), keys, strict=True)}
        return first_classes(Listing.build(folder, keys, classes, names), classes, 100, split)
