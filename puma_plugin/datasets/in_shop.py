"""DeepFashion In-shop Clothes Retrieval."""

import os

from puma_plugin.datasets.annotation_files import read_columns
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset, Layout, Location, Split
from puma_plugin.datasets.catalogue import CATALOGUE
from puma_plugin.datasets.errors import DatasetError
from puma_plugin.datasets.listing import Listing, merge_query_gallery

_FOLDERS = (
    "Inshop_Clothes",
    "In-shop Clothes Retrieval Benchmark",
    "In-shop_Clothes_Retrieval_Benchmark",
    "In-shop",
    "InShop",
    "inshop",
    "DeepFashion/In-shop Clothes Retrieval Benchmark",
    "DeepFashion/In-shop",
)
_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_IMAGES = ("Img/img", "img")


class InShop(BenchmarkDataset):
    """Clothes from a shop: 3,997 items train; 3,985 others test, as queries and as a gallery of their own.

    Args: as for every benchmark dataset. "query" and "gallery" are the published parts; "test" is both, with
        ``query_mask`` and ``gallery_mask``: a query is searched for in the gallery only.

    Layouts: ``Inshop_Clothes/{Eval/list_eval_partition.txt,Img/img}`` (or the published folder's own name), each part
    also directly in the folder.
    """

    facts = CATALOGUE["InShop"]
    recall_ks = (1, 10, 20, 30)
    layouts = tuple(
        Layout(f"{lists} with {images}", _FOLDERS, (lists, images), (images,)) for lists in _LISTS for images in _IMAGES
    )
    own_splits = ("train", "query", "gallery")

    @property
    def first_class(self) -> int:
        """0: queries and gallery have a numbering of their own."""
        return 0

    @classmethod
    def list_images(cls, location: Location, split: Split) -> Listing:
        """See :class:`BenchmarkDataset`."""
        if split == "test":
            return merge_query_gallery(cls.list_images(location, "query"), cls.list_images(location, "gallery"))
        lists, images = location.layout.required
        path = os.path.join(location.folder, lists)
        # Two lines of heading: the number of images and the names of the columns.
        rows = read_columns("InShop", path, 3, skip=2)
        chosen = [(name, item) for name, item, status in rows if status == split]
        unknown = {status for _, _, status in rows} - {"train", "query", "gallery"}
        if unknown:
            raise DatasetError(
                f"InShop: {path} contains the evaluation status {sorted(unknown)[0]!r}; train, query and gallery are "
                "published, copy the file again from the source"
            )
        # The list's names begin with the image folder itself ("img/WOMEN/...").
        base = os.path.normpath(os.path.join(location.folder, os.path.dirname(images)))
        items = sorted({item for _, item in chosen})
        numbers = {item: number for number, item in enumerate(items)}
        return Listing.build(base, [name for name, _ in chosen], [numbers[item] for _, item in chosen], items)
