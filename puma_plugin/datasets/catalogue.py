"""What is published about the eight datasets of the unified benchmark, and where they come from.

Counts are those of the protocol in arXiv 2309.08944: the first classes train, the others test.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counts:
    """Published counts of one split.

    Attributes:
        classes: number of classes.
        images: number of images, or None where only the dataset's total is published.
        certain: False: quoted everywhere but never checked against the files; a difference is reported, not an error.
    """

    classes: int
    images: int | None
    certain: bool = True


@dataclass(frozen=True)
class Facts:
    """One dataset.

    Attributes:
        name: its short name, the distribution's name everywhere.
        title: its full name.
        splits: published counts by split.
        total: images of all splits together.
        source: where to get it.
        unpack: what to do with the downloaded files, one step per line, below the benchmark's root folder.
    """

    name: str
    title: str
    splits: dict[str, Counts]
    total: int
    source: str
    unpack: tuple[str, ...] = field(default=())

    @property
    def classes(self) -> int:
        """Training and test classes together."""
        return self.splits["train"].classes + self._test_classes

    @property
    def train_size(self) -> tuple[int, int]:
        """Training classes and images; where only the total of the images is published, every class counts alike."""
        train = self.splits["train"]
        images = self.total * train.classes // self.classes
        return train.classes, images if train.images is None else train.images

    @property
    def test_size(self) -> tuple[int, int]:
        """Test classes and images, queries and gallery together."""
        return self._test_classes, self.total - self.train_size[1]

    @property
    def _test_classes(self) -> int:
        return next(split.classes for name, split in self.splits.items() if name != "train")

    def how_to_get(self) -> str:
        """Where to get the dataset and how to lay it out, as indented lines."""
        return "\n".join([f"  get: {self.source}", *(f"  {step}" for step in self.unpack)])


CATALOGUE: dict[str, Facts] = {
    facts.name: facts
    for facts in (
        Facts(
            "CUB",
            "Caltech-UCSD Birds 200-2011",
            {"train": Counts(100, 5864), "test": Counts(100, 5924)},
            11788,
            "https://www.vision.caltech.edu/datasets/cub_200_2011/ (CUB_200_2011.tgz)",
            ("tar xzf CUB_200_2011.tgz -C ROOT -> ROOT/CUB_200_2011/{images,images.txt,image_class_labels.txt}",),
        ),
        Facts(
            "Cars196",
            "Stanford Cars",
            {"train": Counts(98, 8054), "test": Counts(98, 8131)},
            16185,
            "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset (cars_train and cars_test) and "
            "https://github.com/pytorch/vision/issues/7545 (their labels: car_devkit.tgz, and copies of "
            "cars_test_annos_withlabels.mat); the original page, with car_ims.tgz and cars_annos.mat, is gone",
            (
                "labels beside the images             -> ROOT/stanford_cars/{devkit,cars_train,cars_test,"
                "cars_test_annos_withlabels.mat}",
                "or the original archive              -> ROOT/cars196/{cars_annos.mat,car_ims/000001.jpg,...}",
                "or the copy in class folders         -> "
                "ROOT/cars196/{names.csv,anno_train.csv,anno_test.csv,car_data}",
            ),
        ),
        Facts(
            "StanfordOnlineProducts",
            "Stanford Online Products",
            {"train": Counts(11318, 59551), "test": Counts(11316, 60502)},
            120053,
            "https://cvgl.stanford.edu/projects/lifted_struct/ (Stanford_Online_Products.zip)",
            (
                "unzip Stanford_Online_Products.zip -d ROOT -> "
                "ROOT/Stanford_Online_Products/{Ebay_train.txt,Ebay_test.txt,bicycle_final,...}",
            ),
        ),
        Facts(
            "InShop",
            "DeepFashion In-shop Clothes Retrieval",
            {
                "train": Counts(3997, 25882),
                "query": Counts(3985, 14218, certain=False),
                "gallery": Counts(3985, 12612, certain=False),
            },
            52712,
            "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html (Img/img.zip and "
            "Eval/list_eval_partition.txt)",
            (
                "keep the downloaded folder's shape and unzip Img/img.zip inside Img",
                "-> ROOT/Inshop_Clothes/{Eval/list_eval_partition.txt,Img/img/{MEN,WOMEN}}",
            ),
        ),
        Facts(
            "NABirds",
            "NABirds",
            {"train": Counts(278, 22909), "test": Counts(277, 25653)},
            48562,
            "https://dl.allaboutbirds.org/nabirds (nabirds.tar.gz, after accepting the terms)",
            ("tar xzf nabirds.tar.gz -C ROOT -> ROOT/nabirds/{images,images.txt,image_class_labels.txt,classes.txt}",),
        ),
        Facts(
            "StanfordDogs",
            "Stanford Dogs",
            {"train": Counts(60, None), "test": Counts(60, None)},
            20580,
            "http://vision.stanford.edu/aditya86/ImageNetDogs/ (images.tar and lists.tar)",
            ("tar xf images.tar -C ROOT/dogs; tar xf lists.tar -C ROOT/dogs -> ROOT/dogs/{Images,file_list.mat}",),
        ),
        Facts(
            "Flowers102",
            "Oxford Flowers-102",
            {"train": Counts(51, 3493), "test": Counts(51, 4696)},
            8189,
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (102flowers.tgz and imagelabels.mat)",
            (
                "tar xzf 102flowers.tgz -C ROOT/flowers -> ROOT/flowers/{jpg/image_00001.jpg,...,imagelabels.mat}",
                "or torchvision's folder                -> ROOT/flowers-102/{jpg,imagelabels.mat}",
            ),
        ),
        Facts(
            "FGVCAircraft",
            "FGVC-Aircraft 2013b (variants)",
            {"train": Counts(50, 5000), "test": Counts(50, 5000)},
            10000,
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ (fgvc-aircraft-2013b.tar.gz)",
            (
                "tar xzf fgvc-aircraft-2013b.tar.gz -C ROOT -> ROOT/fgvc-aircraft-2013b/data/{images,variants.txt,"
                "images_variant_trainval.txt,images_variant_test.txt}",
            ),
        ),
    )
}
