"""Evaluate over several distributions inside pml's machinery."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.datasets.unified_dataset import ID_SHIFT, MEANS
from puma_plugin.evaluation import RetrievalResult, evaluate_retrieval, gather_rows
from puma_plugin.evaluation.arguments import check_ks
from puma_plugin.evaluation.embed import same_on_every_rank, without_ddp
from puma_plugin.evaluation.retrieval import PROTOCOLS, Protocol
from puma_plugin.evaluation.search import load_faiss
from puma_plugin.models.adapted_vit import require_mode
from puma_plugin.utils.distributed import rank, world_size

# What pml's AccuracyCalculator calls the same metrics.
PML_NAMES = {
    "recall_at_1": "precision_at_1",
    "map_at_r": "mean_average_precision_at_r",
    "r_precision": "r_precision",
}


class MultiDistributionTester(GlobalEmbeddingSpaceTester):
    """pml tester that embeds once and evaluates jointly, per distribution, and averaged over the distributions.

    ``test({"val": dataset}, epoch, trunk, embedder)`` fills ``all_accuracies`` with one entry per distribution, and
    with ``unified``, ``harmonic``, ``arithmetic`` and ``worst``; the split's own name holds the unified metrics once
    more. In the name of an entry, which may become that of a data base's table, ``_`` stands for what is neither letter
    nor digit. With several splits the entries are called ``<split>_unified`` and so on. pml's hooks take them for
    splits::

        hooks = HookContainer(record_keeper, validation_split_name="harmonic", primary_metric="precision_at_1")

    logs everything and keeps the model with the best harmonic mean. Metrics: ``precision_at_1`` (equal to recall at 1),
    ``mean_average_precision_at_r``, ``r_precision``, ``recall_at_<k>``; the key is pml's ``precision_at_1_level0``. The
    unified entries have ``leak_level0`` as well. See :class:`puma_plugin.evaluation.RetrievalResult`.

    Datasets are ``UnifiedDataset``s, or give labels (class, distribution); ``distribution_names``, ``item_ids``,
    ``query_mask``, ``gallery_mask``, ``recall_ks`` and ``local_classes`` are used where a dataset has them. With
    ``splits_to_eval=[("query", ["gallery"])]`` the query split is searched in the reference splits; classes and
    distributions are the same where their names are, and the gallery may hold further classes. Items of one
    UnifiedDataset's subsets are recognised by their ids, items of different datasets count as different. Under an
    initialised torch.distributed every rank has to call :meth:`test`: each embeds its share, all get the whole result.

    Args:
        ks: the k of the recalls.
        protocol: "honest" or "paper-code", see :func:`puma_plugin.evaluation.evaluate_retrieval`.
        every_rank: False: a rank that calls :meth:`test` embeds everything by itself, as under ``if rank == 0:``.
        **kwargs: those of pml's BaseTester except ``accuracy_calculator``, ``label_hierarchy_level`` and
            ``normalize_embeddings``: items are compared by the cosine of their embeddings.

    Attributes:
        result: the RetrievalResult of the last split evaluated.
        results: split name -> RetrievalResult, of the last test.

    Raises:
        ImportError: faiss is not installed.
        ValueError: an argument that has no meaning here, another protocol, or ks without 1.
    """

    def __init__(
        self,
        ks: tuple[int, ...] = (1, 2, 4, 8),
        protocol: Protocol = "honest",
        *,
        every_rank: bool = True,
        **kwargs: Any,
    ) -> None:
        for name, neutral in (
            ("accuracy_calculator", None),
            ("label_hierarchy_level", 0),
            ("normalize_embeddings", True),
        ):
            if kwargs.get(name, neutral) != neutral:
                raise ValueError(
                    f"{name} cannot be chosen: MultiDistributionTester computes its own metrics from labels (class, "
                    "distribution) and the cosines of embeddings. For others use pml's GlobalEmbeddingSpaceTester, "
                    "which takes the same datasets"
                )
        load_faiss()  # now, and not after everything has been embedded
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}")
        self.ks = check_ks(ks, "ks")
        if 1 not in self.ks:
            raise ValueError(f"ks must contain 1, got {ks}")
        self.protocol = protocol
        self.every_rank = every_rank
        self.results: dict[str, RetrievalResult] = {}
        super().__init__(**kwargs)

    @property
    def result(self) -> RetrievalResult:
        """Of the split evaluated last."""
        if not self.results:
            raise RuntimeError("nothing has been evaluated yet: call test() first")
        return next(reversed(self.results.values()))

    def initialize_accuracy_calculator(self) -> None:
        self.accuracy_calculator = _Metrics(self.ks)

    def test(
        self,
        dataset_dict: dict[str, Dataset[Any]],
        epoch: int,
        trunk_model: torch.nn.Module,
        embedder_model: torch.nn.Module | None = None,
        splits_to_eval: list[tuple[str, list[str]]] | None = None,
        collate_fn: Any = None,
    ) -> dict[str, dict[str, float]]:
        """Embed the splits and evaluate; returns ``all_accuracies`` (see the class).

        Raises:
            TypeError: ``dataset_dict`` is no mapping.
            ValueError: a split that is not there, datasets without (class, distribution) labels, a ConcatDataset of
                several UnifiedDatasets, splits that cannot be searched together, or two entries of one name.
        """
        if not isinstance(dataset_dict, Mapping):
            raise TypeError(
                f"dataset_dict must be a mapping {{split: dataset}}, got {type(dataset_dict).__name__}: pass "
                '{"test": dataset}'
            )
        named = {name for query, references in splits_to_eval or () for name in (query, *references)}
        if unknown := sorted(named - set(dataset_dict)):
            raise ValueError(f"splits_to_eval names {unknown}, dataset_dict has {list(dataset_dict)}")
        dataset_dict = {split: _as_unified(dataset) for split, dataset in dataset_dict.items()}
        for query, references in splits_to_eval or ():
            _check_together(dataset_dict, query, references)
        queries = list(dataset_dict) if splits_to_eval is None else [query for query, _ in splits_to_eval]
        self._datasets = dataset_dict
        self._epoch = epoch
        self._names = {query: getattr(dataset_dict[query], "distribution_names", None) or () for query in queries}
        _entries(dataset_dict, self._names)  # refused before anything is embedded
        self.results = {}
        # The loaders draw from torch's generator; looking at a model must not change the training that goes on.
        with torch.random.fork_rng(devices=[]):
            return super().test(dataset_dict, epoch, trunk_model, embedder_model, splits_to_eval, collate_fn)

    def do_knn_and_accuracies(
        self,
        accuracies: dict[str, float],
        embeddings_and_labels: dict[str, tuple[Tensor, Tensor]],
        query_split_name: str,
        reference_split_names: list[str],
    ) -> None:
        splits = list(dict.fromkeys([query_split_name, *reference_split_names]))
        for split in splits:
            labels = embeddings_and_labels[split][1]
            if labels.shape[1] != 2:
                raise ValueError(
                    f"split {split!r} has labels of {labels.shape[1]} columns; MultiDistributionTester needs (class, "
                    "distribution): wrap the datasets in UnifiedDataset({name: dataset, ...})"
                )
        self.label_levels = [0]
        columns, names = [], []
        for column, attribute in enumerate(("class_names", "distribution_names")):
            tables, common = _numbered_together(self._datasets, splits, attribute)
            own = [embeddings_and_labels[split][1][:, column].cpu() for split in splits]
            columns.append(torch.cat(own if tables is None else list(map(torch.take, tables, own))))
            names.append(common)
        class_names, distribution_names = names
        result = evaluate_retrieval(
            torch.cat([embeddings_and_labels[split][0] for split in splits]),
            torch.stack(columns, dim=1),
            self._item_ids(splits),
            distribution_names,
            self._mask(splits, [query_split_name], "query_mask"),
            self._mask(splits, reference_split_names, "gallery_mask"),
            self.ks,
            protocol=self.protocol,
            local_classes=self._local_classes(splits),
            distribution_ks=getattr(self._datasets[query_split_name], "recall_ks", None),
            class_names=class_names,
        )
        self.results[query_split_name] = result
        _warn_of_undefined(result, query_split_name)
        accuracies.update(self._named(result.unified), **self._named({"leak": result.leak}))
        means = {**result.unified, "leak": result.leak}, result.harmonic_mean, result.arithmetic_mean, result.worst
        entries = _entries(self._datasets, {**self._names, query_split_name: result.per_distribution})
        for name, metrics in (*result.per_distribution.items(), *zip(MEANS, means, strict=True)):
            entry = entries[query_split_name, name]
            self.all_accuracies[entry] = {"epoch": self._epoch, **self._named(metrics)}
            self.reference_split_names[entry] = [entry]

    def get_all_embeddings(
        self,
        dataset: Dataset[Any],
        trunk_model: torch.nn.Module,
        embedder_model: torch.nn.Module | None = None,
        collate_fn: Any = None,
        eval: bool = True,
        return_as_numpy: bool = False,
    ) -> Any:
        """As pml's; with several processes each embeds a share, and all get the whole in dataset order.

        Raises:
            ValueError: ``eval()`` of a model does not reach its adapters.
        """
        for model in (trunk_model, embedder_model) if eval else ():
            if isinstance(model, torch.nn.Module):
                model.eval()
                require_mode(model, training=False)
        if world_size() == 1 or not self.every_rank:
            embedder_model = None if embedder_model is None else without_ddp(embedder_model)
            trunk_model = without_ddp(trunk_model)
            return super().get_all_embeddings(dataset, trunk_model, embedder_model, collate_fn, eval, return_as_numpy)
        embedder = same_on_every_rank(torch.nn.Identity() if embedder_model is None else embedder_model)
        trunk_model = same_on_every_rank(trunk_model)
        if eval:
            trunk_model.eval()
            embedder.eval()
        size = len(dataset)  # type: ignore[arg-type]
        mine = torch.arange(size)[rank() :: world_size()]
        embeddings, labels = torch.empty(0, 0), torch.empty(0, 0, dtype=torch.int64)
        if len(mine):
            loader = c_f.get_eval_dataloader(
                Subset(dataset, mine.tolist()), self.batch_size, self.dataloader_num_workers, collate_fn
            )
            embeddings, labels = self.compute_all_embeddings(loader, trunk_model, embedder)
        embeddings = gather_rows(embeddings.cpu(), mine, size).to(self.data_device)
        labels = gather_rows(labels.cpu(), mine, size).to(self.data_device)
        embeddings = self.maybe_normalize(embeddings)
        return (embeddings.cpu().numpy(), labels.cpu().numpy()) if return_as_numpy else (embeddings, labels)

    def _named(self, metrics: dict[str, float]) -> dict[str, float]:
        return {self.accuracies_keyname(PML_NAMES.get(name, name)): value for name, value in metrics.items()}

    def _item_ids(self, splits: list[str]) -> Tensor:
        """Ids that are equal exactly for the same item of the same dataset, over all splits."""
        families: dict[int, int] = {}  # of objects: ids of unrelated datasets say nothing about each other

        def family(dataset: Any) -> int:
            return families.setdefault(id(dataset), len(families)) << ID_SHIFT

        ids = []
        for split in splits:
            dataset: Any = self._datasets[split]
            if isinstance(dataset, UnifiedDataset):
                # By the dataset that an item is of: several unions, and subsets of them, may share some.
                part, place = dataset.origins()
                own = torch.empty_like(place)
                for number, inner in enumerate(dataset.parts):
                    base, positions = _looked_through(inner, place[part == number])
                    own[part == number] = positions + family(base)
            else:
                given = getattr(dataset, "item_ids", None)
                # Numbered anew: they may be any numbers.
                own = torch.arange(len(dataset)) if given is None else _numbered(torch.as_tensor(given))
                own = own + family(dataset)
            ids.append(own)
        return torch.cat(ids)

    def _local_classes(self, splits: list[str]) -> Tensor | None:
        found = [getattr(self._datasets[split], "local_classes", None) for split in splits]
        known = [torch.as_tensor(numbers) for numbers in found if numbers is not None]
        return torch.cat(known) if len(known) == len(splits) else None

    def _mask(self, splits: list[str], chosen: list[str], attribute: str) -> Tensor:
        masks = []
        for split in splits:
            size = len(self._datasets[split])  # type: ignore[arg-type]
            own = getattr(self._datasets[split], attribute, None)
            mask = torch.ones(size, dtype=torch.bool) if own is None else torch.as_tensor(own)
            masks.append(mask if split in chosen else torch.zeros(size, dtype=torch.bool))
        return torch.cat(masks)


def _looked_through(dataset: Any, positions: Tensor) -> tuple[Any, Tensor]:
    """The dataset below torch's ``Subset``s, and the positions there."""
    while isinstance(dataset, Subset):
        dataset, positions = dataset.dataset, torch.as_tensor(dataset.indices)[positions]
    return dataset, positions


def _numbered(values: Tensor) -> Tensor:
    return values.unique(return_inverse=True)[1]


def _warn_of_undefined(result: RetrievalResult, split: str) -> None:
    for name, metrics in result.per_distribution.items():
        if math.isnan(metrics["recall_at_1"]):
            warnings.warn(
                f"{split}: no query of {name} has an item of its class in the gallery, so its figures and the means "
                "over the distributions are undefined (NaN), which pml's hooks take for never better; give it a "
                "gallery of its classes (of the same class_names), or leave it out (UnifiedDataset.select)",
                stacklevel=2,
            )


def _numbered_together(
    datasets: Mapping[str, Any], splits: Sequence[str], attribute: str
) -> tuple[list[Tensor] | None, list[str] | None]:
    """Where splits number their classes (or distributions) differently, a table from own to common numbers for each.

    Args:
        attribute: "class_names" or "distribution_names"; what has the same name is the same.

    Returns:
        The tables, None where all number alike; and the names in the order of the common numbers.

    Raises:
        ValueError: the names differ and do not tell all apart.
    """
    names: list[Any] = [getattr(datasets[split], attribute, None) for split in splits]
    if all(own == names[0] for own in names):
        return None, names[0]
    if any(own is None or len(set(own)) < len(own) for own in names):
        raise ValueError(
            f"splits {list(splits)}, which are evaluated together, must have equal {attribute}, or all have some and "
            "each name once: otherwise one number means different things in them"
        )
    common = list(dict.fromkeys(name for own in names for name in own))
    number = {name: index for index, name in enumerate(common)}
    return [torch.tensor([number[name] for name in own]) for own in names], common


def _check_together(datasets: Mapping[str, Any], query: str, references: Sequence[str]) -> None:
    """ValueError for splits that cannot be searched together, before they are embedded."""
    for attribute in ("class_names", "distribution_names"):
        _numbered_together(datasets, [query, *references], attribute)
    asked = getattr(datasets[query], "distribution_names", None) or ()
    for split in references:
        surplus = sorted(set(getattr(datasets[split], "distribution_names", None) or ()) - set(asked))
        if surplus:
            raise ValueError(
                f"split {split!r} holds the distributions {surplus}, of which {query!r} has no query: leave them out "
                "(UnifiedDataset.select)"
            )
    found = {name for split in references for name in getattr(datasets[split], "distribution_names", None) or asked}
    if missing := sorted(set(asked) - found):
        raise ValueError(
            f"split {query!r} asks for the distributions {missing}, of which {list(references)} hold nothing: add "
            "their gallery, or leave them out (UnifiedDataset.select)"
        )


def _entries(splits: Iterable[str], names: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], str]:
    """(query split, distribution or mean) -> entry, as pml's hooks can keep them: as tables of a data base.

    Args:
        splits: all of them, which are entries as well.
        names: query split -> its distributions.

    Raises:
        ValueError: two entries are the same for pml, which keeps them in capitals.
    """
    taken: dict[str, str] = {}

    def take(entry: str, what: str) -> str:
        other = taken.setdefault(entry.upper(), what)
        if other != what:
            raise ValueError(
                f"{what} is entered as {entry!r} in all_accuracies, where pml would take it for {other}: rename it"
            )
        return entry

    for split in splits:
        take(split, f"split {split!r}")
    entries = {}
    for split, own in names.items():
        prefix, of_split = (f"{split}_", f" of split {split!r}") if len(names) > 1 else ("", "")
        for name in MEANS:
            entries[split, name] = take(prefix + name, f"the mean {name!r}{of_split}")
        for name in own:
            entries[split, name] = take(prefix + re.sub(r"\W", "_", name), f"distribution {name!r}{of_split}")
    return entries


def _as_unified(dataset: Dataset[Any]) -> Dataset[Any]:
    """Torch's ``Subset`` of a ``UnifiedDataset``, or several joined, as the subset that keeps names, ids and masks."""
    if isinstance(dataset, ConcatDataset):
        parts = [_looked_through(part, torch.arange(len(part))) for part in dataset.datasets]  # type: ignore[arg-type]
        first = parts[0][0]
        if isinstance(first, UnifiedDataset) and all(base is first for base, _ in parts):
            return first.subset(torch.cat([positions for _, positions in parts]))
        if any(isinstance(base, UnifiedDataset) for base, _ in parts):
            raise ValueError(
                "a ConcatDataset of several UnifiedDatasets cannot be evaluated, as one class number means another "
                "class in each: join the parts by UnifiedDataset({name: part, ...}), or take "
                "UnifiedDataset.subset(indices) of one that holds them all"
            )
    if not isinstance(dataset, Subset):
        return dataset
    inner = _as_unified(dataset.dataset)
    return inner.subset(dataset.indices) if isinstance(inner, UnifiedDataset) else dataset


class _Metrics:
    """What pml's hooks ask an accuracy calculator for: which metrics there are."""

    def __init__(self, ks: tuple[int, ...]) -> None:
        self._names = [*PML_NAMES.values(), *(f"recall_at_{k}" for k in ks if k != 1)]

    def get_curr_metrics(self) -> list[str]:
        return self._names

    def description(self) -> str:
        return ""
