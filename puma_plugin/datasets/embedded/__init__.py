"""The embedded benchmark: eight image distributions made by code in seconds, and a small pretrained backbone."""

from puma_plugin.datasets.embedded.backbone import IMAGE_MEAN, IMAGE_STD, load_backbone, to_input
from puma_plugin.datasets.embedded.benchmark import DISTRIBUTIONS, EmbeddedBenchmark, load_embedded, starve
from puma_plugin.datasets.embedded.distribution import EmbeddedDistribution

__all__ = [
    "DISTRIBUTIONS",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "EmbeddedBenchmark",
    "EmbeddedDistribution",
    "load_backbone",
    "load_embedded",
    "starve",
    "to_input",
]
