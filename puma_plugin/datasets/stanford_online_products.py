"""Stanford Online Products."""

import os

from puma_plugin.datasets.annotation_files import reading
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.listing import Listing


class StanfordOnlineProducts(BenchmarkDataset):
    """Products from online shops: 11,318 train, 11,316 test. Arguments as for every benchmark dataset.

    Layout: ``Stanford_Online_Products/{Ebay_train.txt,Ebay_test.txt,*_final}``, as the archive unpacks and as
    pytorch-metric-learning reads it (its class parses the lists). Products have no names; they are called after their
    category and number, as in "bicycle 1".
    """

    facts = CATALOGUE["StanfordOnlineProducts"]
    recall_ks = (1, 10, 100, 1000)
    layouts = (
        Layout(
            "archive",
            ("Stanford_Online_Products",),
            ("Ebay_train.txt", "Ebay_test.txt"),
            tuple(
                f"{name}_final"
                for name in (
                    "bicycle",
                    "cabinet",
                    "chair",
                    "coffee_maker",
                    "fan",
                    "kettle",
                    "lamp",
                    "mug",
                    "sofa",
                    "stapler",
                    "table",
                    "toaster",
                )
            ),
            fixed_name=True,
        ),
    )

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        # Imported here, as it takes a second that other datasets need not wait for.
        from pytorch_metric_learning import datasets as pml_datasets

        folder = location.folder
        part = "train" if split == "train" else "test"
        with reading(cls.facts.name, os.path.join(folder, f"Ebay_{part}.txt")):
            parsed = pml_datasets.StanfordOnlineProducts(os.path.dirname(folder), split=part)
        keys = [path[len(folder) + 1 :].replace(os.sep, "/") for path in parsed.paths]
        names = {
            number: f"{key.split('/')[0].removesuffix('_final')} {number}"
            for number, key in zip(parsed.labels, keys, strict=True)
        }
        return Listing.build(folder, keys, parsed.labels, names)
