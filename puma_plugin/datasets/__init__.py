"""Datasets: several as one, the eight of the paper, image folders, manifests and few-shot splits."""

from puma_plugin.datasets.benchmark import BENCHMARK, load_benchmark
from puma_plugin.datasets.benchmark_dataset import BenchmarkDataset
from puma_plugin.datasets.cars196 import Cars196
from puma_plugin.datasets.cub import CUB
from puma_plugin.datasets.distribution_dataset import DistributionDataset
from puma_plugin.datasets.errors import DatasetError, DatasetNotFoundError
from puma_plugin.datasets.few_shot import FewShotSplit, draw_few_shot, read_few_shot, write_few_shot
from puma_plugin.datasets.fgvc_aircraft import FGVCAircraft
from puma_plugin.datasets.flowers102 import Flowers102
from puma_plugin.datasets.image_folder import ImageFolder
from puma_plugin.datasets.in_shop import InShop
from puma_plugin.datasets.manifest import ManifestDataset, distributions_of, read_manifest
from puma_plugin.datasets.nabirds import NABirds
from puma_plugin.datasets.stanford_dogs import StanfordDogs
from puma_plugin.datasets.stanford_online_products import StanfordOnlineProducts
from puma_plugin.datasets.unified_dataset import UnifiedDataset
from puma_plugin.datasets.verify import verify_datasets, verify_own

__all__ = [
    "BENCHMARK",
    "CUB",
    "BenchmarkDataset",
    "Cars196",
    "DatasetError",
    "DatasetNotFoundError",
    "DistributionDataset",
    "FGVCAircraft",
    "FewShotSplit",
    "Flowers102",
    "ImageFolder",
    "InShop",
    "ManifestDataset",
    "NABirds",
    "StanfordDogs",
    "StanfordOnlineProducts",
    "UnifiedDataset",
    "distributions_of",
    "draw_few_shot",
    "load_benchmark",
    "read_few_shot",
    "read_manifest",
    "verify_datasets",
    "verify_own",
    "write_few_shot",
]
