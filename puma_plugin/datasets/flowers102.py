"""Oxford Flowers-102."""

import os

import numpy as np

from puma_plugin.datasets.annotation_files import check_range, read_mat, reading
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split, first_classes
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.listing import Listing


class Flowers102(BenchmarkDataset):
    """Flowers: classes 1..51 train, 52..102 test. Arguments as for every benchmark dataset.

    Layouts: ``flowers/{jpg,imagelabels.mat}``, as the archive unpacks, or torchvision's ``flowers-102``. torchvision's
    class is not used to parse them: it lists each of its three parts alone and refuses any copy but the one with its
    checksum. The names of the classes are its; the source has none.
    """

    facts = CATALOGUE["Flowers102"]
    layouts = (
        Layout(
            "archive",
            ("flowers", "flowers-102", "flowers102", "Flowers102", "oxford-flowers-102", "102flowers"),
            ("imagelabels.mat", "jpg"),
            ("jpg",),
        ),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        # Imported here, as it takes a second and 170 MB that other datasets need not pay.
        from torchvision.datasets import Flowers102 as TorchvisionFlowers102

        path = os.path.join(location.folder, "imagelabels.mat")
        content = read_mat("Flowers102", path, "labels")
        with reading("Flowers102", path):
            classes = np.atleast_1d(content["labels"]).astype(np.int64) - 1
        check_range("Flowers102", path, classes, cls.facts.classes)
        # Label i belongs to image i, counted from 1.
        keys = [f"jpg/image_{number:05d}.jpg" for number in range(1, len(classes) + 1)]
        listing = Listing.build(location.folder, keys, classes, TorchvisionFlowers102.classes)
        return first_classes(listing, classes, cls.facts, split)
