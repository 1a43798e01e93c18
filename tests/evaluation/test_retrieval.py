"""Every metric against a brute-force recount and figures worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils import accuracy_calculator
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from puma_plugin.evaluation import evaluate_retrieval, nearest_neighbours, scoring
from puma_plugin.evaluation.paper_code import overlapping_classes, own_numbers, position_keys
from puma_plugin.evaluation.result import harmonic_mean
from puma_plugin.evaluation.retrieval import PROTOCOLS, Protocol
from puma_plugin.evaluation.scoring import blocks_by_depth
from puma_plugin.evaluation.search import CompiledSearcher, FaissSearcher, searcher_type
from puma_plugin.ops import loader


def clustered(seed: int, sizes: list[list[int]], width: int = 12, spread: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around class centres; sizes[d] lists the items of each class of distribution d."""
    rng = np.random.default_rng(seed)
    rows, labels, number = [], [], 0
    for d, classes in enumerate(sizes):
        for count in classes:
            centre = rng.standard_normal(width)
            rows.append(centre + spread * rng.standard_normal((count, width)))
            labels += [(number, d)] * count
            number += 1
    order = rng.permutation(len(labels))
    return np.concatenate(rows)[order].astype(np.float32), np.array(labels)[order]


def recount(
    rows: np.ndarray,
    same: np.ndarray,
    excluded: np.ndarray,
    k: int,
) -> tuple[list[bool], list[float], list[float], np.ndarray]:
    """Loop over queries: recall at k, R-precision, MAP@R and the nearest item; the plain definition."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = unit @ unit.T
    recall, r_precision, map_at_r, nearest = [], [], [], []
    for query in range(len(rows)):
        order = sorted(
            (i for i in range(len(rows)) if not excluded[query, i]), key=lambda i: (-similarity[query, i], i)
        )
        hits = [bool(same[query, i]) for i in order]
        nearest.append(order[0])
        positives = sum(hits)
        if positives == 0:
            continue
        recall.append(any(hits[:k]))
        r_precision.append(sum(hits[:positives]) / positives)
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(positives) if hits[i]]
        map_at_r.append(sum(precisions) / positives)
    return recall, r_precision, map_at_r, np.array(nearest)


SIZES = [[5, 7, 9, 1], [3, 4], [20, 2, 6, 2, 3]]


@pytest.mark.parametrize("seed", range(3))
def test_joint_metrics_equal_a_recount(seed: int) -> None:
    rows, labels = clustered(seed, SIZES)
    result = evaluate_retrieval(rows, labels, ks=(1, 3))
    same = labels[:, None, 0] == labels[None, :, 0]
    recall, r_precision, map_at_r, nearest = recount(rows, same, np.eye(len(rows), dtype=bool), 3)
    assert result.unified["recall_at_3"] == pytest.approx(np.mean(recall), abs=1e-12)
    assert result.unified["r_precision"] == pytest.approx(np.mean(r_precision), abs=1e-12)
    assert result.unified["map_at_r"] == pytest.approx(np.mean(map_at_r), abs=1e-12)
    assert result.leak == pytest.approx(np.mean(labels[nearest, 1] != labels[:, 1]), abs=1e-12)
    assert result.num_lone == {"distribution 0": 1, "distribution 1": 0, "distribution 2": 0}


@pytest.mark.parametrize("seed", range(3))
def test_distributions_equal_separate_evaluations_and_their_means(seed: int) -> None:
    rows, labels = clustered(seed, SIZES)
    result = evaluate_retrieval(rows, labels, distribution_names=["a", "b", "c"])
    firsts = {}
    for d, name in enumerate("abc"):
        mine = labels[:, 1] == d
        alone = evaluate_retrieval(rows[mine], labels[mine])
        assert result.per_distribution[name] == alone.unified
        assert alone.leak == 0
        firsts[name] = alone.unified["recall_at_1"]
    assert result.harmonic_mean["recall_at_1"] == pytest.approx(3 / sum(1 / v for v in firsts.values()))
    assert result.arithmetic_mean["recall_at_1"] == pytest.approx(sum(firsts.values()) / 3)
    assert result.worst["recall_at_1"] == min(firsts.values())
    assert firsts[result.worst_distribution["recall_at_1"]] == min(firsts.values())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(4, 60), levels=st.integers(1, 3))
def test_ties_are_ordered_by_gallery_position_as_in_pml(seed: int, size: int, levels: int) -> None:
    # Coordinates of +-1 in 16 dimensions: norms and products are exact in float32, so equal means equal.
    rng = np.random.default_rng(seed)
    rows = rng.choice([-1.0, 1.0], size=(levels, 16)).astype(np.float32)[rng.integers(0, levels, size)]
    labels = np.stack([rng.integers(0, 3, size), np.zeros(size, int)], axis=1)
    same = labels[:, None, 0] == labels[None, :, 0]
    recall, r_precision, map_at_r, nearest = recount(rows, same, np.eye(size, dtype=bool), 2)
    _, found = nearest_neighbours(rows, rows, 1, np.arange(size), np.arange(size))
    assert found[:, 0].tolist() == nearest.tolist()
    if not recall:
        return
    result = evaluate_retrieval(rows, labels, ks=(1, 2))
    assert result.unified["recall_at_2"] == pytest.approx(np.mean(recall), abs=1e-12)
    assert result.unified["r_precision"] == pytest.approx(np.mean(r_precision), abs=1e-12)
    assert result.unified["map_at_r"] == pytest.approx(np.mean(map_at_r), abs=1e-12)
    expected = AccuracyCalculator(include=("precision_at_1", "r_precision")).get_accuracy(
        torch.from_numpy(rows / 4), torch.from_numpy(labels[:, 0])
    )
    assert result.unified["recall_at_1"] == pytest.approx(expected["precision_at_1"], abs=1e-12)
    assert result.unified["r_precision"] == pytest.approx(expected["r_precision"], abs=1e-12)


def test_a_hit_needs_the_distribution_and_the_paper_code_protocol_does_not() -> None:
    # Distribution b repeats the points of a. Two training classes stand before a's test classes and none before b's:
    # a's are numbered 2 and 3, and b's, 0 and 1, are moved by the two numbers given before, to 2 and 3 as well.
    rows = np.array([[1, 0], [0, 1], [1, 0.01], [0.01, 1], [1, 0.5], [0.5, 1]], dtype=np.float32)
    labels = np.array([[0, 0], [1, 0], [2, 1], [3, 1], [0, 0], [1, 0]])
    honest = evaluate_retrieval(rows, labels, ks=(1,))
    paper = evaluate_retrieval(rows, labels, ks=(1,), protocol="paper-code", local_classes=[2, 3, 0, 1, 2, 3])
    # Honest: items 0 and 1 find b's items first, 4 and 5 find each other or b; b's items are alone in their class.
    assert honest.unified["recall_at_1"] == 0.0
    assert honest.leak == 1.0
    # By the authors' numbers items 0, 1, 2, 3 find their twin of the other distribution, 4 and 5 too.
    assert paper.unified["recall_at_1"] == 1.0
    # Within one distribution the numbers agree; b's queries, alone in their class, are misses instead of left out.
    assert paper.per_distribution["distribution 0"]["recall_at_1"] == 1.0
    assert honest.per_distribution["distribution 0"]["recall_at_1"] == 1.0
    assert paper.per_distribution["distribution 1"]["recall_at_1"] == 0.0
    assert math.isnan(honest.per_distribution["distribution 1"]["recall_at_1"])


def test_paper_code_class_numbers_of_the_eight_datasets() -> None:
    # (classes in the test, training classes before them) of CUB, Cars, SOP, In-shop, NABirds, Dogs, Flowers, Aircraft;
    # In-shop is joined last and counted from 0. The authors' 15,937 test classes get 11,514 numbers.
    table = [(100, 100), (98, 98), (11316, 11318), (3985, 0), (277, 278), (60, 60), (51, 51), (50, 50)]
    distributions = np.repeat(np.arange(8), [count for count, _ in table])
    local = np.concatenate([first + np.arange(count) for count, first in table])
    numbers = overlapping_classes(distributions, local, joined_last=[3])
    assert len(numbers) == 15_937
    assert len(np.unique(numbers)) == 11_514
    assert numbers[distributions == 2].min() == 11_318 + 196


def test_what_is_joined_last_gets_the_last_numbers() -> None:
    # Two classes of distribution 0, two of distribution 2, and only then the one of distribution 1.
    numbers = overlapping_classes(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 0, 0, 1]), joined_last=[1])
    assert numbers.tolist() == [0, 1, 4, 2, 3]


def test_paper_code_class_numbers_by_default() -> None:
    # Distribution 0: three test classes behind as many training classes. 1: its queries are not its gallery, from 0.
    classes, distributions = np.array([4, 9, 7, 12, 15, 4]), np.array([0, 0, 0, 1, 1, 0])
    assert own_numbers(classes, distributions, joined_last=[1]).tolist() == [3, 5, 4, 0, 1, 3]
    labels = np.stack([classes, distributions], axis=1)
    labels = np.concatenate([labels, labels[3:5]])
    query, offered = np.arange(8) < 6, np.isin(np.arange(8), [3, 4], invert=True)
    rows = np.random.default_rng(0).standard_normal((8, 4))
    default, explicit = (
        evaluate_retrieval(
            rows, labels, query_mask=query, gallery_mask=offered, protocol="paper-code", local_classes=local
        )
        for local in (None, [3, 5, 4, 0, 1, 3, 0, 1])
    )
    assert default == explicit


def test_paper_code_takes_the_place_among_the_queries_or_gallery_items_of_a_distribution_for_the_id() -> None:
    distributions = np.array([0, 1, 0, 1, 1, 0])
    keys = position_keys(distributions, np.array([1, 2, 3, 5]))
    # 2 and 5 are the first and second of distribution 0, 1 and 3 of distribution 1; the others were not chosen.
    assert keys.tolist() == [-1, 1 << 40, 0, (1 << 40) + 1, -1, 1]


def test_paper_code_counts_r_with_the_query_as_the_authors_call_of_pml_does() -> None:
    rows, labels = clustered(5, [[5, 7, 9, 3]])
    paper = evaluate_retrieval(rows, labels, protocol="paper-code")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    found = labels[np.argsort(-similarity, axis=1), 0]
    counts = accuracy_calculator.get_label_match_counts(
        torch.from_numpy(labels[:, 0]), torch.from_numpy(labels[:, 0]), torch.eq
    )
    arguments = torch.from_numpy(found), torch.from_numpy(labels[:, :1]), False, counts, False, False, torch.eq
    assert paper.unified["r_precision"] == pytest.approx(accuracy_calculator.r_precision(*arguments), abs=1e-12)
    expected = accuracy_calculator.mean_average_precision(*arguments, at_r=True)
    assert paper.unified["map_at_r"] == pytest.approx(expected, abs=1e-12)


def test_query_and_gallery_masks_exclude_by_item_id_not_by_position() -> None:
    # In-shop form: query 0 and gallery item 0 are different images of one class.
    rows = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]], dtype=np.float32)
    labels = np.array([[0, 0], [1, 0], [0, 0], [1, 0]])
    query = np.array([True, True, False, False])
    honest = evaluate_retrieval(rows, labels, query_mask=query, gallery_mask=~query, ks=(1,))
    assert honest.unified["recall_at_1"] == 1.0
    assert honest.num_queries == {"distribution 0": 2}
    assert honest.num_gallery == {"distribution 0": 2}
    # The authors' code excludes gallery item i from query i: both lose their only positive.
    paper = evaluate_retrieval(rows, labels, query_mask=query, gallery_mask=~query, ks=(1,), protocol="paper-code")
    assert paper.num_lone == {"distribution 0": 2}
    assert paper.unified["recall_at_1"] == 0.0


def test_copies_of_an_item_are_all_excluded() -> None:
    rows = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    labels = np.array([[0, 0], [0, 0], [1, 0], [1, 0]])
    result = evaluate_retrieval(rows, labels, item_ids=[7, 7, 8, 9], ks=(1,))
    assert result.num_lone == {"distribution 0": 2}
    # Item 2 finds a copy of another class, item 3 finds item 2.
    assert result.unified["recall_at_1"] == 0.5


@pytest.mark.parametrize("seed", range(6))
def test_queries_apart_from_the_gallery_equal_a_recount(seed: int) -> None:
    # Few directions, so that most distances are ties; items in both roles, in one, in none; ids given twice.
    rng = np.random.default_rng(seed)
    directions = np.array([*np.eye(4), *-np.eye(4), *2 * rng.choice([-1, 1], (6, 4))])
    rows = directions[rng.integers(0, len(directions), 60)].astype(np.float16)
    classes = rng.integers(0, 8, 60)
    labels = np.stack([classes, classes % 3], axis=1)
    ids = rng.integers(0, 50, 60) * 3 + labels[:, 1]
    asked, offered = rng.random(60) < 0.6, rng.random(60) < 0.7
    result = evaluate_retrieval(rows, labels, ids, query_mask=asked, gallery_mask=offered, ks=(3,), block_size=7)
    unit = rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
    recalls: dict[str, list[float]] = {"unified": [], **{name: [] for name in result.per_distribution}}
    leaks = []
    for query in np.flatnonzero(asked):
        own = f"distribution {labels[query, 1]}"
        order = [i for i in np.argsort(-(unit @ unit[query]), kind="stable") if offered[i] and ids[i] != ids[query]]
        leaks.append(labels[order[0], 1] != labels[query, 1])
        for gallery, items in (("unified", order), (own, [i for i in order if labels[i, 1] == labels[query, 1]])):
            hits = classes[items] == classes[query]
            if hits.any():
                recalls[gallery].append(hits[:3].any())
    assert result.leak == pytest.approx(np.mean(leaks), abs=1e-12)
    by_distribution = np.bincount(labels[asked, 1]), np.bincount(labels[offered, 1])
    assert (list(result.num_queries.values()), list(result.num_gallery.values())) == tuple(map(list, by_distribution))
    assert result.unified["recall_at_3"] == pytest.approx(np.mean(recalls.pop("unified")), abs=1e-12)
    for name, values in recalls.items():
        assert result.per_distribution[name]["recall_at_3"] == pytest.approx(np.mean(values), abs=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_means_are_undefined_if_a_distribution_is(turned: bool) -> None:
    # Wherever the distribution without a positive stands.
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    labels = np.array([[0, 0], [0, 0], [1, 1], [2, 1]])
    if turned:
        labels[:, 1] = 1 - labels[:, 1]
    result = evaluate_retrieval(rows, labels, distribution_names=["b", "a"] if turned else ["a", "b"])
    assert result.per_distribution["a"]["recall_at_1"] == 1
    for mean in (result.harmonic_mean, result.arithmetic_mean, result.worst):
        assert math.isnan(mean["recall_at_1"])
    assert result.worst_distribution["recall_at_1"] == "b"


def test_undefined_figures_are_null_in_strict_json_and_nan_here() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    labels = np.array([[0, 0], [0, 0], [1, 1], [2, 1]])
    result = evaluate_retrieval(rows, labels, distribution_names=["a", "b"], ks=(1, 2))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = json.dumps(result.to_dict(per_class=True))
    content = json.loads(text, parse_constant=refuse)
    assert content["per_distribution"]["b"] == dict.fromkeys(result.unified)
    assert content["harmonic_mean"]["map_at_r"] is None
    assert content["num_lone"] == {"a": 0, "b": 2}
    assert math.isnan(result.per_distribution["b"]["recall_at_2"])
    assert math.isnan(result.worst["recall_at_1"])
    assert "per_class" not in result.to_dict()


def test_harmonic_mean_is_zero_if_any_distribution_is_zero() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.05], [0.05, 1]], dtype=np.float32)
    labels = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [2, 1], [2, 1]])
    rows = np.concatenate([rows, [[0.04, 1], [1, 0.04]]]).astype(np.float32)
    labels = np.concatenate([labels, [[3, 1], [3, 1]]])
    result = evaluate_retrieval(rows, labels, ks=(1,))
    assert result.per_distribution["distribution 0"]["recall_at_1"] == 1
    assert result.per_distribution["distribution 1"]["recall_at_1"] == 0
    assert result.harmonic_mean["recall_at_1"] == 0
    assert result.arithmetic_mean["recall_at_1"] == 0.5


@pytest.mark.parametrize("farthest", range(2, 11))
def test_a_hit_at_the_very_last_rank_of_a_further_k_counts(farthest: int) -> None:
    # Each item is farther from the first than the one before; only the first and the sixth are of one class.
    angles = 0.02 * np.arange(10) + 0.003 * np.arange(10) ** 2
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.stack([np.where(np.arange(10) == 5, 0, np.arange(10)), np.zeros(10, int)], axis=1)
    result = evaluate_retrieval(rows, labels, ks=(1,), distribution_ks={"distribution 0": (farthest,)})
    distances = np.abs(angles[:, None] - angles)
    ranks = [int((distances[query] <= distances[query, other]).sum()) - 1 for query, other in ((0, 5), (5, 0))]
    expected = np.mean([rank <= farthest for rank in ranks])
    assert ranks == [5, 7]
    assert result.per_distribution["distribution 0"][f"recall_at_{farthest}"] == expected


def test_a_harmonic_mean_with_an_undefined_value_is_undefined_whatever_the_others() -> None:
    assert math.isnan(harmonic_mean([0.0, math.nan]))
    assert math.isnan(harmonic_mean([0.5, math.nan]))
    assert harmonic_mean([0.5, 0.0]) == 0
    assert harmonic_mean([0.5, 0.25]) == pytest.approx(1 / 3)


def test_further_ks_of_one_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = clustered(4, SIZES)
    names = ["birds", "shop", "dogs"]
    result = evaluate_retrieval(rows, labels, distribution_names=names, ks=(1, 2), distribution_ks={"shop": (1, 5)})
    mine = labels[:, 1] == 1
    alone = evaluate_retrieval(rows[mine], labels[mine], ks=(1, 2, 5))
    assert result.per_distribution["shop"] == alone.unified
    # Small classes among many items: most queries have to be searched for again, deeper.
    rows, labels = clustered(4, [[2] * 150, [3, 3]], spread=3.0)
    deep = evaluate_retrieval(
        rows, labels, ks=(1, 2), distribution_ks={"distribution 0": (10, 100, 400)}, block_size=64
    )
    mine = labels[:, 1] == 0
    alone = evaluate_retrieval(rows[mine], labels[mine], ks=(1, 2, 10, 100, 400))
    assert deep.per_distribution["distribution 0"] == alone.unified
    monkeypatch.setattr(scoring, "BLOCK_NEIGHBOURS", 1000)  # two of them at once
    further = {"distribution 0": (10, 100, 400)}
    assert evaluate_retrieval(rows, labels, ks=(1, 2), distribution_ks=further, block_size=64) == deep
    assert deep.per_distribution["distribution 0"]["recall_at_10"] < 0.6
    assert deep.per_distribution["distribution 0"]["recall_at_400"] == 1
    rows, labels = clustered(4, SIZES)
    assert "recall_at_5" not in result.per_distribution["birds"]
    assert set(result.harmonic_mean) == set(result.unified) == {"recall_at_1", "recall_at_2", "map_at_r", "r_precision"}
    with pytest.raises(ValueError, match="distribution_ks names"):
        evaluate_retrieval(rows, labels, distribution_names=names, distribution_ks={"cars": (1, 5)})


def test_sums_by_class_add_up_to_the_metrics() -> None:
    rows, labels = clustered(6, SIZES)
    result = evaluate_retrieval(rows, labels, class_names=[f"class {i}" for i in range(11)])
    for d, (name, part) in enumerate(result.per_class.items()):
        assert part["classes"] == [f"class {i}" for i in np.unique(labels[labels[:, 1] == d, 0])]
        assert part["queries"] == SIZES[d]
        assert sum(part["own"]["map_at_r"]) / sum(part["own"]["counted"]) == pytest.approx(
            result.per_distribution[name]["map_at_r"]
        )
        assert sum(part["leaks"]) / sum(part["queries"]) == pytest.approx(result.leak_per_distribution[name])
    hits, counted = (
        sum(sum(part["unified"][key]) for part in result.per_class.values()) for key in ("recall_at_1", "counted")
    )
    assert hits / counted == pytest.approx(result.unified["recall_at_1"])
    assert "per_class" not in result.to_dict()
    assert json.loads(json.dumps(result.to_dict(per_class=True)))["per_class"] == result.per_class


def test_joint_figures_of_each_distribution_and_class_equal_a_recount() -> None:
    rows, labels = clustered(6, SIZES, spread=1.5)
    result = evaluate_retrieval(rows, labels)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = labels[similarity.argmax(axis=1)]
    own_nearest = labels[np.where(labels[:, None, 1] == labels[None, :, 1], similarity, -np.inf).argmax(axis=1)]
    hits, own_hits = nearest[:, 0] == labels[:, 0], own_nearest[:, 0] == labels[:, 0]
    leaks = nearest[:, 1] != labels[:, 1]
    counted = np.bincount(labels[:, 0])[labels[:, 0]] > 1
    assert 0 < hits.sum() < own_hits.sum()
    for d, (name, part) in enumerate(result.per_class.items()):
        mine = labels[:, 1] == d
        assert result.unified_per_distribution[name]["recall_at_1"] == pytest.approx(hits[mine & counted].mean())
        assert result.leak_per_distribution[name] == pytest.approx(leaks[mine].mean())
        members = [labels[:, 0] == label for label in np.unique(labels[mine, 0])]
        assert part["unified"]["recall_at_1"] == [hits[of_class].sum() for of_class in members]
        assert part["own"]["recall_at_1"] == [own_hits[of_class].sum() for of_class in members]
        assert part["own"]["counted"] == [counted[of_class].sum() for of_class in members]
        assert part["leaks"] == [leaks[of_class].sum() for of_class in members]


@pytest.mark.parametrize(
    ("least", "blocks"),
    [
        (1, [[0, 1, 3], [5], [2, 4]]),  # one neighbour each: three at once; a hundred each: two
        (5, [[0, 1], [3, 5], [2, 4]]),  # four are too few for a search of their own and join the deep ones
    ],
)
def test_queries_are_searched_in_blocks_of_like_depth(least: int, blocks: list[list[int]]) -> None:
    depths = np.array([1, 1, 100, 1, 100, 1])
    found = blocks_by_depth(np.arange(6), depths, block_size=3, least=least, neighbours=200)
    assert [block.tolist() for block in found] == blocks
    assert blocks_by_depth(np.arange(0), depths, block_size=3) == []


def test_k_beyond_the_gallery_costs_no_more_than_the_gallery() -> None:
    rows, labels = clustered(2, SIZES)
    huge = 10**15
    result = evaluate_retrieval(rows, labels, ks=(1, huge), distribution_ks={"distribution 1": (10 * huge,)})
    assert result.unified[f"recall_at_{huge}"] == 1
    assert result.per_distribution["distribution 1"][f"recall_at_{10 * huge}"] == 1
    assert result.unified["map_at_r"] == evaluate_retrieval(rows, labels, ks=(1,)).unified["map_at_r"]


@pytest.mark.parametrize("spread", [1.5, 1e-3, 0.0])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_compiled_search_scores_as_faiss_does(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol, spread: float
) -> None:
    # From well spread embeddings to collapsed ones, where rounding orders nearly everything.
    rng = np.random.default_rng(5)
    _, labels = clustered(5, [[9] * 40, [60] * 5, [2] * 90])
    rows = rng.standard_normal((1, 24)) + spread * rng.standard_normal((len(labels), 24))
    further = {"distribution 0": (1, 100, 300)}
    compiled = evaluate_retrieval(rows, labels, distribution_ks=further, protocol=protocol)
    assert searcher_type(2) is CompiledSearcher
    monkeypatch.setattr(loader, "CPU_LIBRARY", loader.LibraryState("_C", False))
    assert searcher_type(2) is FaissSearcher
    assert evaluate_retrieval(rows, labels, distribution_ks=further, protocol=protocol) == compiled


def test_block_size_does_not_change_anything() -> None:
    rows, labels = clustered(11, SIZES)
    assert evaluate_retrieval(rows, labels, block_size=7) == evaluate_retrieval(rows, labels)


def test_result_is_json_and_prints() -> None:
    rows, labels = clustered(1, SIZES)
    result = evaluate_retrieval(rows, labels, distribution_names=["birds", "cars", "dogs"])
    assert json.loads(json.dumps(result.to_dict()))["per_distribution"]["birds"] == result.per_distribution["birds"]
    assert "harmonic mean" in result.table()
    with pytest.raises(ValueError, match="recall_at_1"):
        result.table("accuracy")
    lines = result.table("recall_at_2", "map_at_r").splitlines()
    assert lines[0].split() == ["R@2", "MAP@R"]
    of_birds = result.per_distribution["birds"]
    assert len({len(line) for line in result.table().splitlines()}) == 1
    rows_of_one = dict(line.rsplit(maxsplit=1) for line in result.table().splitlines())
    assert rows_of_one == {
        **{name: f"{100 * part['recall_at_1']:.2f}" for name, part in result.per_distribution.items()},
        "harmonic mean": f"{100 * result.harmonic_mean['recall_at_1']:.2f}",
        "arithmetic mean": f"{100 * result.arithmetic_mean['recall_at_1']:.2f}",
        "worst": f"{100 * result.worst['recall_at_1']:.2f}",
        "unified": f"{100 * result.unified['recall_at_1']:.2f}",
        "leak": f"{100 * result.leak:.2f}",
    }
    assert lines[1].split() == ["birds", f"{100 * of_birds['recall_at_2']:.2f}", f"{100 * of_birds['map_at_r']:.2f}"]
    assert lines[-1].split() == ["leak", f"{100 * result.leak:.2f}"]
    assert result.table("recall_at_2", "map_at_r", joint=False).splitlines() == lines[:-2]


def test_errors_at_the_door() -> None:
    rows, labels = clustered(1, SIZES)
    with pytest.raises(ValueError, match="columns class and distribution"):
        evaluate_retrieval(rows, labels[:, 0])
    with pytest.raises(ValueError, match="more than one distribution"):
        evaluate_retrieval(rows, np.stack([labels[:, 1], np.arange(len(labels)) % 2], axis=1))
    with pytest.raises(ValueError, match="NaN or infinity"):
        evaluate_retrieval(np.where(np.arange(len(rows))[:, None] == 3, np.nan, rows), labels)
    with pytest.raises(ValueError, match="query_mask"):
        evaluate_retrieval(rows, labels, query_mask=np.zeros(3, bool))
    with pytest.raises(ValueError, match="queries and gallery"):
        evaluate_retrieval(rows, labels, query_mask=np.zeros(len(rows), bool))
    with pytest.raises(ValueError, match="'distribution 1' has 0 queries"):
        evaluate_retrieval(rows, labels, query_mask=labels[:, 1] != 1)
    with pytest.raises(ValueError, match="protocol"):
        evaluate_retrieval(rows, labels, protocol="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ks"):
        evaluate_retrieval(rows, labels, ks=(0, 1))
    with pytest.raises(TypeError, match="ks must hold integers"):
        evaluate_retrieval(rows, labels, ks=(1.5,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="item_ids must be integers"):
        evaluate_retrieval(rows, labels, item_ids=np.linspace(0, 1, len(rows)))
    with pytest.raises(ValueError, match="there are 2 class_names"):
        evaluate_retrieval(rows, labels, class_names=["a", "b"])
    with pytest.raises(ValueError, match="block_size"):
        evaluate_retrieval(rows, labels, block_size=0)
    with pytest.raises(ValueError, match="block_size"):
        nearest_neighbours(rows, rows, 1, block_size=-1)
    with pytest.raises(ValueError, match="distribution_names"):
        evaluate_retrieval(rows, labels, distribution_names=["a"])
    with pytest.raises(ValueError, match="gallery has no rows"):
        nearest_neighbours(rows, rows[:0], 1)
    with pytest.raises(ValueError, match="same width"):
        nearest_neighbours(rows, rows[:, :4], 1)
    with pytest.raises(ValueError, match="together"):
        nearest_neighbours(rows, rows, 1, query_ids=np.arange(len(rows)))
