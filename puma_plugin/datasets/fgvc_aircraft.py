"""FGVC-Aircraft."""

import os

import numpy as np

from puma_plugin.datasets.annotation_files import reading
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split, first_classes
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.listing import Listing

_LISTS = ("data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt")


class FGVCAircraft(BenchmarkDataset):
    """Aircraft variants: of the 100 in sorted order, the first 50 train. Arguments as for every benchmark dataset.

    Layout: ``fgvc-aircraft-2013b/data``, as the archive unpacks and torchvision reads it (its class parses the lists).
    """

    facts = CATALOGUE["FGVCAircraft"]
    layouts = (
        Layout("archive", ("fgvc-aircraft-2013b",), (*_LISTS, "data/images"), ("data/images",), fixed_name=True),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        # Imported here, as it takes a second and 170 MB that other datasets need not pay.
        from torchvision.datasets import FGVCAircraft as TorchvisionFGVCAircraft

        folder = location.folder
        keys, found = [], []
        with reading("FGVCAircraft", *(os.path.join(folder, name) for name in _LISTS)):
            for part in ("trainval", "test"):
                # With `str` as the loader its items are (path, class), so no image is opened.
                parsed = TorchvisionFGVCAircraft(os.path.dirname(folder), split=part, loader=str)
                for place in range(len(parsed)):
                    path, number = parsed[place]
                    keys.append(path[len(folder) + 1 :].replace(os.sep, "/"))
                    found.append(parsed.classes[number])
        variants = sorted(set(found))
        order = {name: number for number, name in enumerate(variants)}
        classes = np.array([order[name] for name in found], np.int64)
        return first_classes(Listing.build(folder, keys, classes, variants), classes, cls.facts, split)
