"""The tester against the evaluation it wraps and against pml's own tester."""

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import embed, evaluate_retrieval
from puma_plugin.testers import MultiDistributionTester

SIZES = {"birds": (40, 6), "cars": (22, 4), "dogs": (30, 5)}


def vectors(count: int, classes: int, seed: int) -> TensorDataset:
    """Items that are their own embeddings, around class centres."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 8, generator=generator)
    return TensorDataset(centres[labels] + 0.7 * torch.randn(count, 8, generator=generator), labels)


@pytest.fixture
def dataset() -> UnifiedDataset:
    return UnifiedDataset({name: vectors(*size, seed=i) for i, (name, size) in enumerate(SIZES.items())})


def stacked(dataset: UnifiedDataset) -> torch.Tensor:
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def make(**kwargs: Any) -> MultiDistributionTester:
    return MultiDistributionTester(**{"dataloader_num_workers": 0, "batch_size": 16, **kwargs})


def test_entries_are_the_evaluation_under_the_names_of_pml(dataset: UnifiedDataset) -> None:
    tester = make(ks=(1, 2, 5))
    accuracies = tester.test({"val": dataset}, 3, torch.nn.Identity())
    result = evaluate_retrieval(
        stacked(dataset),
        dataset.labels,
        dataset.item_ids,
        dataset.distribution_names,
        ks=(1, 2, 5),
        class_names=dataset.class_names,
    )
    assert tester.result == result
    assert set(accuracies) == {"val", "unified", "harmonic", "arithmetic", "worst", *SIZES}
    expected = {
        "val": result.unified,
        "unified": result.unified,
        "harmonic": result.harmonic_mean,
        "arithmetic": result.arithmetic_mean,
        "worst": result.worst,
        **result.per_distribution,
    }
    for entry, metrics in expected.items():
        found = accuracies[entry]
        assert found["epoch"] == 3
        assert found["precision_at_1_level0"] == metrics["recall_at_1"]
        assert found["recall_at_5_level0"] == metrics["recall_at_5"]
        assert found["mean_average_precision_at_r_level0"] == metrics["map_at_r"]
        assert found["r_precision_level0"] == metrics["r_precision"]
    assert accuracies["unified"]["leak_level0"] == accuracies["val"]["leak_level0"] == result.leak
    assert "leak_level0" not in accuracies["harmonic"]


def test_unified_equals_pmls_own_tester(dataset: UnifiedDataset) -> None:
    ours = make().test({"val": dataset}, 1, torch.nn.Identity())["unified"]
    theirs = GlobalEmbeddingSpaceTester(dataloader_num_workers=0).test({"val": dataset}, 1, torch.nn.Identity())["val"]
    for metric in ("precision_at_1", "r_precision", "mean_average_precision_at_r"):
        assert ours[f"{metric}_level0"] == pytest.approx(theirs[f"{metric}_level0"], abs=1e-12)


def test_names_become_those_of_tables() -> None:
    """pml's hooks keep entries in a data base, whose tables cannot have every name."""
    parts = {
        "my birds-2": TensorDataset(torch.eye(4), torch.arange(4) // 2),
        "vögel": TensorDataset(torch.eye(4), torch.arange(4) // 2),
    }
    tester = make()
    found = tester.test({"val": UnifiedDataset(parts)}, 1, torch.nn.Identity())
    assert {"my_birds_2", "vögel"} <= found.keys()
    assert list(tester.result.per_distribution) == ["my birds-2", "vögel"]
    both = UnifiedDataset({name: TensorDataset(torch.eye(4), torch.arange(4) // 2) for name in ("a b", "a-b")})
    with pytest.raises(ValueError, match=r"'a-b' is entered as 'a_b' in all_accuracies, where pml would .* 'a b'"):
        tester.test({"val": both}, 1, torch.nn.Identity())


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"val": ["cub", "CUB"]}, "distribution 'CUB' is entered as 'CUB' .* for distribution 'cub': rename it"),
        ({"val": ["Harmonic"]}, "distribution 'Harmonic' .* for the mean 'harmonic'"),
        ({"TEXTURE": ["texture"]}, "distribution 'texture' .* for split 'TEXTURE'"),
        ({"VAL": ["a"], "val": ["b"]}, "split 'val' .* for split 'VAL'"),
        (
            {"val": ["new_cub"], "val_new": ["cub"]},
            "distribution 'cub' of split 'val_new' is entered as 'val_new_cub' .* 'new_cub' of split 'val'",
        ),
    ],
)
def test_entries_that_pml_would_mix_up_are_refused(splits: dict[str, list[str]], message: str) -> None:
    """Its records are tables, named in capitals."""
    datasets = {
        split: UnifiedDataset({name: vectors(8, 2, seed=0) for name in names}) for split, names in splits.items()
    }
    with pytest.raises(ValueError, match=message):
        make().test(datasets, 1, Unused())


def test_several_splits_are_kept_apart(dataset: UnifiedDataset) -> None:
    train, val = dataset.split_classes(0.4)
    accuracies = make().test({"train": train, "val": val}, 1, torch.nn.Identity())
    alone = make().test({"val": val}, 1, torch.nn.Identity())
    assert accuracies["val_harmonic"] == alone["harmonic"]
    assert accuracies["train_birds"]["precision_at_1_level0"] != accuracies["val_birds"]["precision_at_1_level0"]


def test_results_are_those_of_all_splits_of_the_last_test(dataset: UnifiedDataset) -> None:
    train, val = dataset.split_classes(0.4)
    tester = make()
    tester.test({"train": train, "val": val}, 1, torch.nn.Identity())
    assert list(tester.results) == ["train", "val"]
    assert tester.result is tester.results["val"]
    tester.test({"train": train}, 2, torch.nn.Identity())
    assert list(tester.results) == ["train"]


def test_query_and_gallery_splits(dataset: UnifiedDataset) -> None:
    # Every other item of each class, so that both sides know all classes.
    chosen = torch.cat([torch.arange(count) // classes % 2 == 0 for count, classes in SIZES.values()])
    query, gallery = dataset.subset(chosen), dataset.subset(~chosen)
    tester = make()
    found = tester.test(
        {"query": query, "gallery": gallery}, 1, torch.nn.Identity(), splits_to_eval=[("query", ["gallery"])]
    )
    expected = evaluate_retrieval(stacked(dataset), dataset.labels, query_mask=chosen, gallery_mask=~chosen)
    assert found["unified"]["precision_at_1_level0"] == pytest.approx(expected.unified["recall_at_1"])
    # A query that also stands in the reference is recognised there by its id, though it comes from another subset.
    tester.test({"query": query, "all": dataset}, 1, torch.nn.Identity(), splits_to_eval=[("query", ["all"])])
    expected = evaluate_retrieval(stacked(dataset), dataset.labels, query_mask=chosen)
    assert tester.result.unified == pytest.approx(expected.unified)


def with_two_columns(rows: torch.Tensor, classes: list[int]) -> TensorDataset:
    """A dataset of one's own: its labels are of one distribution."""
    return TensorDataset(rows, torch.tensor([[label, 0] for label in classes]))


@pytest.mark.parametrize("unified", [True, False])
def test_items_of_unrelated_datasets_are_different_items(unified: bool) -> None:
    # Query i and gallery item i are different images, as in In-shop.
    def shop() -> Dataset[Any]:
        if unified:
            return UnifiedDataset({"shop": TensorDataset(torch.eye(4), torch.arange(4))})
        return with_two_columns(torch.eye(4), [0, 1, 2, 3])

    tester = make()
    tester.test({"query": shop(), "gallery": shop()}, 1, torch.nn.Identity(), splits_to_eval=[("query", ["gallery"])])
    assert tester.result.unified["recall_at_1"] == 1


def test_a_dataset_of_ones_own_tells_by_ids_which_items_are_the_same() -> None:
    """Each nearest neighbour is a second picture of the same thing, or of another class."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.1], [0.1, 1.0]])
    things = with_two_columns(rows, [0, 0, 0, 1, 1, 1])
    for ids, expected in ((None, 4 / 6), ([7, 7, 3, 9, 9, 4], 0.0)):
        if ids is not None:
            things.item_ids = ids  # type: ignore[attr-defined]
        tester = make()
        tester.test({"val": things}, 1, torch.nn.Identity())
        assert tester.result.unified["recall_at_1"] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:val. no query of")  # odd and even items are of different classes in two of them
def test_masks_of_the_dataset(dataset: UnifiedDataset) -> None:
    dataset.query_mask = torch.arange(len(dataset)) % 3 == 0
    dataset.gallery_mask = ~dataset.query_mask
    tester = make()
    tester.test({"val": dataset}, 1, torch.nn.Identity())
    assert sum(tester.result.num_queries.values()) == int(dataset.query_mask.sum())
    assert sum(tester.result.num_gallery.values()) == int(dataset.gallery_mask.sum())


def test_torch_subset_of_the_dataset_keeps_names_ids_and_masks(dataset: UnifiedDataset) -> None:
    dataset.query_mask = torch.arange(len(dataset)) % 2 == 0
    chosen = range(30, 80)
    tester, own = make(), make()
    accuracies = tester.test({"val": Subset(Subset(dataset, range(20, 90)), range(10, 60))}, 1, torch.nn.Identity())
    own.test({"val": dataset.subset(list(chosen))}, 1, torch.nn.Identity())
    assert {"birds", "cars", "dogs"} <= set(accuracies)
    assert tester.result == own.result
    assert sum(tester.result.num_queries.values()) == int(dataset.query_mask[30:80].sum())


def test_joined_subsets_of_the_dataset_are_one_of_its_subsets(dataset: UnifiedDataset) -> None:
    joined = ConcatDataset([Subset(dataset, range(50, len(dataset))), Subset(dataset, range(50))])
    found = make().test({"val": joined}, 1, torch.nn.Identity())
    whole = make().test({"val": dataset}, 1, torch.nn.Identity())
    assert found["harmonic"] == pytest.approx(whole["harmonic"])
    # An item that is there twice does not find itself.
    twice = make().test({"val": ConcatDataset([dataset, dataset])}, 1, torch.nn.Identity())
    assert twice["unified"]["precision_at_1_level0"] == pytest.approx(whole["unified"]["precision_at_1_level0"])


def test_embedder_trunk_output_and_getter_are_those_of_pml(dataset: UnifiedDataset) -> None:
    embedder = torch.nn.Linear(8, 4)
    tester = make(data_and_label_getter=lambda batch: (batch[0], batch[1]))
    tester.test({"val": dataset}, 1, torch.nn.Identity(), embedder)
    with torch.no_grad():
        expected = evaluate_retrieval(embedder(stacked(dataset)), dataset.labels, ks=(1,))
    assert tester.result.unified["recall_at_1"] == pytest.approx(expected.unified["recall_at_1"])
    of_trunk = make(use_trunk_output=True)
    of_trunk.test({"val": dataset}, 1, torch.nn.Identity(), embedder)
    plain = evaluate_retrieval(stacked(dataset), dataset.labels)
    assert of_trunk.result.unified == pytest.approx(plain.unified)


def test_paper_code_protocol(dataset: UnifiedDataset) -> None:
    tester = make(protocol="paper-code")
    tester.test({"val": dataset}, 1, torch.nn.Identity())
    expected = evaluate_retrieval(stacked(dataset), dataset.labels, protocol="paper-code")
    assert tester.result.protocol == "paper-code"
    assert tester.result.unified == pytest.approx(expected.unified)


def test_paper_code_numbers_classes_as_the_parts_tell() -> None:
    parts = {"birds": vectors(24, 4, seed=1), "shop": vectors(30, 5, seed=1)}
    dataset = UnifiedDataset(parts)
    assert dataset.local_classes is None
    assumed = embed(torch.nn.Identity(), dataset).evaluate(protocol="paper-code")
    # The shop's are moved by the four numbers of the birds, to 40 ... 44: onto those of the birds, 40 ... 43.
    for part, first in zip(parts.values(), (40, 36), strict=True):
        part.first_class = first  # type: ignore[attr-defined]
    told = UnifiedDataset(parts)
    numbers = [40 + c if d == 0 else 36 + c - 4 for c, d in told.labels.tolist()]
    expected = evaluate_retrieval(stacked(told), told.labels, protocol="paper-code", local_classes=numbers)
    assert expected.unified["recall_at_1"] > assumed.unified["recall_at_1"]
    assert embed(torch.nn.Identity(), told).evaluate(protocol="paper-code").unified == expected.unified
    tester = make(protocol="paper-code")
    tester.test({"val": told}, 1, torch.nn.Identity())
    assert tester.result.unified == expected.unified


def test_paper_code_needs_to_be_told_by_all_splits() -> None:
    def results(first_class: int | None) -> Any:
        query, gallery = vectors(24, 4, seed=1), vectors(24, 4, seed=1)
        if first_class is not None:
            query.first_class = first_class  # type: ignore[attr-defined]
        splits = {"query": UnifiedDataset({"birds": query}), "gallery": UnifiedDataset({"birds": gallery})}
        tester = make(protocol="paper-code")
        tester.test(splits, 1, torch.nn.Identity(), splits_to_eval=[("query", ["gallery"])])
        return tester.result.unified

    assert results(40) == results(None)


def test_recalls_that_a_part_asks_for() -> None:
    # As StanfordOnlineProducts and InShop do.
    shop = vectors(30, 5, seed=3)
    shop.recall_ks = (1, 10)  # type: ignore[attr-defined]
    dataset = UnifiedDataset({"birds": vectors(24, 4, seed=1), "shop": shop})
    accuracies = make().test({"val": dataset}, 1, torch.nn.Identity())
    expected = evaluate_retrieval(stacked(dataset), dataset.labels, ks=(1, 10))
    assert accuracies["shop"]["recall_at_10_level0"] == expected.per_distribution["distribution 1"]["recall_at_10"]
    assert "recall_at_10_level0" not in accuracies["birds"]
    embedded = embed(torch.nn.Identity(), dataset)
    assert embedded.evaluate().per_distribution["shop"]["recall_at_10"] == accuracies["shop"]["recall_at_10_level0"]
    assert dataset.select(["birds"]).recall_ks == {}
    # The queries' part is asked.
    splits = {"query": UnifiedDataset({"shop": shop}), "gallery": UnifiedDataset({"shop": vectors(30, 5, seed=3)})}
    accuracies = make().test(splits, 1, torch.nn.Identity(), splits_to_eval=[("query", ["gallery"])])
    assert "recall_at_10_level0" in accuracies["shop"]


class OneColumn(Dataset[Any]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(8), index % 2


def test_errors_at_the_door(dataset: UnifiedDataset) -> None:
    with pytest.raises(ValueError, match="UnifiedDataset"):
        make().test({"val": OneColumn()}, 1, torch.nn.Identity())
    with pytest.raises(ValueError, match="accuracy_calculator"):
        make(accuracy_calculator=object())
    with pytest.raises(ValueError, match="label_hierarchy_level"):
        make(label_hierarchy_level=1)
    with pytest.raises(ValueError, match="ks must contain 1"):
        make(ks=(2, 4))
    with pytest.raises(ValueError, match="protocol must be one of"):
        make(protocol="other")
    with pytest.raises(ValueError, match="normalize_embeddings cannot be chosen"):
        make(normalize_embeddings=False)
    with pytest.raises(ValueError, match="a ConcatDataset of several UnifiedDatasets cannot be evaluated"):
        make().test({"val": ConcatDataset([dataset, dataset.subset(range(20))])}, 1, Unused())
    with pytest.raises(ValueError, match="a ConcatDataset of several UnifiedDatasets cannot be evaluated"):
        make().test({"val": ConcatDataset([with_two_columns(torch.eye(8), [0] * 8), dataset])}, 1, Unused())
    with pytest.raises(TypeError, match=r"dataset_dict must be a mapping .* got UnifiedDataset: pass"):
        make().test(dataset, 1, torch.nn.Identity())
    with pytest.raises(ValueError, match=r"splits_to_eval names \['train'\], dataset_dict has \['val'\]"):
        make().test({"val": dataset}, 1, torch.nn.Identity(), splits_to_eval=[("val", ["val", "train"])])
    with pytest.raises(RuntimeError, match="call test"):
        make().result  # noqa: B018
    nameless, named = dataset.subset(range(20)), dataset.subset(range(40))
    del nameless.class_names
    with pytest.raises(ValueError, match=r"equal class_names, or all have some and each name once"):
        make().test({"query": nameless, "gallery": named}, 1, Unused(), splits_to_eval=[("query", ["gallery"])])
    twice = dataset.subset(range(20))
    twice.class_names[1] = twice.class_names[0]
    with pytest.raises(ValueError, match=r"equal class_names, or all have some and each name once"):
        make().test({"query": twice, "gallery": named}, 1, Unused(), splits_to_eval=[("query", ["gallery"])])


class Unused(torch.nn.Module):
    """A model that nothing may be embedded with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def test_a_gallery_may_hold_classes_that_are_not_asked_for(dataset: UnifiedDataset) -> None:
    """Distractors. Subsets number what they hold anew, so that the same class has other numbers in them."""
    asked = (dataset.labels[:, 0] % 2 == 1).numpy() & (dataset.item_ids // 7 % 2 == 0).numpy()
    query, gallery = dataset.subset(asked), dataset.subset(~asked)
    assert query.class_names[0] != gallery.class_names[0]
    tester = make()
    found = tester.test(
        {"query": query, "gallery": gallery}, 1, torch.nn.Identity(), splits_to_eval=[("query", ["gallery"])]
    )
    expected = evaluate_retrieval(
        stacked(dataset),
        dataset.labels,
        dataset.item_ids,
        dataset.distribution_names,
        query_mask=torch.from_numpy(asked),
        gallery_mask=torch.from_numpy(~asked),
        class_names=dataset.class_names,
    )
    assert tester.result.unified == pytest.approx(expected.unified)
    assert tester.result.leak == pytest.approx(expected.leak)
    assert tester.result.per_distribution.keys() == expected.per_distribution.keys() == set(SIZES)
    for name, metrics in expected.per_distribution.items():
        assert tester.result.per_distribution[name] == pytest.approx(metrics)
    assert found["query"]["precision_at_1_level0"] == pytest.approx(expected.unified["recall_at_1"])


def test_a_gallery_with_a_further_distribution_is_refused_before_anything_is_embedded(dataset: UnifiedDataset) -> None:
    splits = {"query": dataset.select(["birds"]), "gallery": dataset}
    with pytest.raises(
        ValueError, match=r"'gallery' holds the distributions \['cars', 'dogs'\], of which 'query' has no"
    ):
        make().test(splits, 1, Unused(), splits_to_eval=[("query", ["gallery"])])
    with pytest.raises(
        ValueError, match=r"'gallery' asks for the distributions \['cars', 'dogs'\], of which \['query'\] hold nothing"
    ):
        make().test(splits, 1, Unused(), splits_to_eval=[("gallery", ["query"])])


BACKWARDS = range(29, -1, -1)


@pytest.mark.parametrize(("wrap", "order"), [
    (lambda shared: shared, range(30)),
    (lambda shared: Subset(shared, BACKWARDS), BACKWARDS),
    (lambda shared: Subset(Subset(shared, BACKWARDS), BACKWARDS), range(30)),
])  # fmt: skip
@pytest.mark.parametrize("left_out", [0, 7])
def test_sets_that_share_some_datasets_exclude_the_items_of_those(wrap: Any, order: range, left_out: int) -> None:
    """As in the benchmark: seven datasets are query and gallery at once, one has images of its own for either."""
    shared, asked, shown = vectors(30, 6, seed=1), vectors(8, 4, seed=2), vectors(12, 4, seed=2)
    query = UnifiedDataset({"cub": wrap(shared), "inshop": asked}).subset(range(left_out, 38))
    gallery = UnifiedDataset({"inshop": shown, "cub": shared})
    tester = make()
    tester.test({"query": query, "gallery": gallery}, 0, torch.nn.Identity(), splits_to_eval=[("query", ["gallery"])])
    whole = UnifiedDataset({"cub": shared})
    whole.query_mask = torch.zeros(30, dtype=torch.bool)
    whole.query_mask[order[left_out:]] = True
    alone = make()
    alone.test({"val": whole}, 0, torch.nn.Identity())
    assert tester.result.per_distribution["cub"]["recall_at_1"] < 1
    assert tester.result.per_distribution["cub"] == alone.result.per_distribution["cub"]


def test_hooks_are_told_which_metrics_there_are() -> None:
    names = make(ks=(1, 5)).accuracy_calculator.get_curr_metrics()
    assert names == ["precision_at_1", "mean_average_precision_at_r", "r_precision", "recall_at_5"]


def test_a_distribution_without_matches_is_said() -> None:
    query = UnifiedDataset({"a": vectors(6, 3, seed=1), "b": vectors(6, 3, seed=2)})
    lonely = UnifiedDataset({"a": vectors(6, 3, seed=3), "b": vectors(6, 3, seed=4)})
    lonely.class_names[3:] = ["b/other 0", "b/other 1", "b/other 2"]
    tester = make()
    with pytest.warns(
        UserWarning, match="query: no query of b has an item of its class in the gallery, so its figures"
    ):
        tester.test({"query": query, "g": lonely}, 0, torch.nn.Identity(), splits_to_eval=[("query", ["g"])])
    assert math.isnan(tester.result.harmonic_mean["recall_at_1"])


def test_testing_leaves_the_random_numbers_of_the_training_alone(dataset: UnifiedDataset) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    make().test({"val": dataset}, 0, torch.nn.Identity())
    assert torch.equal(torch.rand(3), expected)
