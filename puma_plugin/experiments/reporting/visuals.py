"""What the report shows of embeddings: maps, and queries with their nearest neighbours."""

from collections.abc import Mapping

import numpy as np
import torch

from puma_plugin.evaluation import nearest_neighbours
from puma_plugin.experiments.data.splits import ImageSets
from puma_plugin.experiments.reporting.pictures import Neighbour, Query
from puma_plugin.experiments.reporting.report import EmbeddingMap


def members_of(sets: ImageSets) -> np.ndarray:
    """(N,) index of the distribution of every image, in the order in which the sets are embedded."""
    return np.repeat(np.arange(len(sets)), [len(part) for part in sets.values()])


def embedding_maps(
    embeddings: Mapping[str, np.ndarray], members: np.ndarray, images: int, seed: int = 0
) -> list[EmbeddingMap]:
    """t-SNE maps of the same sample of images for every method, as many of each distribution.

    Args:
        embeddings: label -> (N, D).
        members: (N,) index of the distribution.
        images: size of the sample.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    generator = np.random.default_rng(seed)
    count = len(np.unique(members))
    chosen = np.concatenate(
        [
            generator.permutation(np.flatnonzero(members == index))[: max(1, images // count)]
            for index in np.unique(members)
        ]
    )
    perplexity = min(30.0, (len(chosen) - 1) / 3.0)
    maps = []
    for label, values in embeddings.items():
        # Its threads wait for each other thousands of times: minutes where another program keeps a core busy.
        with threadpool_limits(1):
            points = TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(
                values[chosen].astype(np.float32)
            )
        maps.append(EmbeddingMap(label, points, members[chosen]))
    return maps


def query_rows(
    embeddings: Mapping[str, np.ndarray], sets: ImageSets, queries: int, neighbours: int, seed: int = 0
) -> list[Query]:
    """Random queries of every distribution with their neighbours in the joint gallery, for every method."""
    generator = np.random.default_rng(seed)
    members = members_of(sets)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in sets.values()])])
    names = list(sets)
    picked = np.concatenate(
        [
            starts[index] + generator.permutation(_chosen(part.query_mask, len(part)))[:queries]
            for index, part in enumerate(sets.values())
        ]
    )
    gallery = np.concatenate(
        [starts[index] + _chosen(part.gallery_mask, len(part)) for index, part in enumerate(sets.values())]
    )

    def picture(item: int) -> np.ndarray:
        name = names[members[item]]
        return np.array(sets[name][int(item - starts[members[item]])][0])

    def identity(item: int) -> tuple[int, int]:
        return int(members[item]), int(sets[names[members[item]]].targets[item - starts[members[item]]])

    rows = [Query(names[members[item]], picture(item), {}) for item in picked]
    for label, values in embeddings.items():
        table = torch.from_numpy(values.astype(np.float32))
        count = min(neighbours, len(gallery) - 1)
        _, places = nearest_neighbours(table[picked], table[gallery], count, picked, gallery)
        for row, item, found in zip(rows, picked, gallery[places], strict=True):
            row.neighbours[label] = [
                Neighbour(picture(int(other)), identity(int(other)) == identity(int(item)), names[members[int(other)]])
                for other in found
            ]
    return rows


def _chosen(mask: torch.Tensor | None, size: int) -> np.ndarray:
    return np.arange(size) if mask is None else np.flatnonzero(mask.numpy())
