"""The sampler's promises, for random datasets and settings."""

import math
import pickle
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset

from puma_plugin.datasets import UnifiedDataset
from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.samplers.spaced_permutations import SpacedPermutations

Labels = np.ndarray[Any, Any]
SETTINGS = settings(deadline=None, max_examples=40)


def make_labels(sizes: list[list[int]], seed: int = 0) -> Labels:
    """sizes[d] lists the items of each class of distribution d; the items stand in random order."""
    rows, number = [], 0
    for d, classes in enumerate(sizes):
        for count in classes:
            rows += [(number, d)] * count
            number += 1
    return np.array(rows)[np.random.default_rng(seed).permutation(len(rows))]


# Two to four distributions of two to eight classes of up to nine items.
some_sizes = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=8), min_size=1, max_size=4)
balances = st.one_of(st.just("proportional"), st.just("uniform"), st.floats(0.5, 20))


def build(labels: Labels, *args: Any, **kwargs: Any) -> MultiDistributionSampler:
    """The sampler, unless these labels cannot fill a batch of these settings."""
    try:
        return MultiDistributionSampler(labels, *args, **kwargs)
    except ValueError as error:
        assume("lower" not in str(error))
        raise


def epochs(sampler: MultiDistributionSampler, count: int) -> list[list[int]]:
    return [batch for _ in range(count) for batch in sampler]


def expected_rates(labels: Labels, balance: Any) -> np.ndarray[Any, Any]:
    sizes = np.bincount(labels[:, 1]).astype(float)
    temperature = {"proportional": 1.0, "uniform": math.inf}.get(balance, balance)
    weights = sizes ** (1 / temperature)
    return weights / weights.sum()


@SETTINGS
@given(some_sizes, st.integers(1, 12), st.integers(0, 2**31))
def test_the_paper_setting_is_a_plain_reshuffled_epoch(sizes: list[list[int]], batch_size: int, seed: int) -> None:
    labels = make_labels(sizes)
    sampler = build(labels, batch_size, seed=seed, drop_last=False)
    first, second = list(sampler), list(sampler)
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(len(labels)))
        assert [len(batch) for batch in epoch[:-1]] == [batch_size] * (len(sampler) - 1)
    if len(labels) > 12:
        assert first != second
    dropping = build(labels, batch_size, seed=seed)
    assert list(dropping) == [batch for batch in first if len(batch) == batch_size]


@SETTINGS
@given(some_sizes, st.integers(1, 12), balances, st.integers(0, 2**31))
def test_exact_counts_per_distribution_in_every_batch(
    sizes: list[list[int]], batch_size: int, balance: Any, seed: int
) -> None:
    labels = make_labels(sizes)
    sampler = build(labels, batch_size, balance=balance, seed=seed, batches_per_epoch=7)
    shares = batch_size * expected_rates(labels, balance)
    for batch in epochs(sampler, 3):
        assert len(batch) == batch_size == len(set(batch))
        counts = np.bincount(labels[batch, 1], minlength=len(shares))
        assert (counts >= np.floor(shares - 1e-6)).all()
        assert (counts <= np.ceil(shares + 1e-6)).all()


@SETTINGS
@given(some_sizes, st.integers(1, 12), balances, st.booleans(), st.integers(0, 2**31))
def test_every_item_is_seen_before_any_repeats_within_its_distribution(
    sizes: list[list[int]], batch_size: int, balance: Any, whole: bool, seed: int
) -> None:
    labels = make_labels(sizes)
    sampler = build(
        labels, batch_size, balance=balance, seed=seed, batches_per_epoch=5, one_distribution_per_batch=whole
    )
    batches = epochs(sampler, 6)
    for d in range(len(sizes)):
        members = np.flatnonzero(labels[:, 1] == d)
        seen: Counter[int] = Counter()
        for batch in batches:
            assert len(set(batch)) == len(batch)
            if whole:
                assert len(set(labels[batch, 1])) == 1
            seen.update(i for i in batch if labels[i, 1] == d)
            # A batch may hold the end of one round and the beginning of the next, in any order.
            counts = [seen[i] for i in members]
            assert max(counts) - min(counts) <= 1


@SETTINGS
@given(
    st.lists(st.lists(st.integers(3, 9), min_size=2, max_size=8), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 6),
    balances,
    st.sampled_from(["items", "classes"]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_m_per_class(
    sizes: list[list[int]], m: int, groups: int, balance: Any, by: Any, whole: bool, seed: int
) -> None:
    labels = make_labels(sizes)
    sampler = build(
        labels,
        m * groups,
        m,
        balance,
        balance_by=by,
        seed=seed,
        batches_per_epoch=5,
        one_distribution_per_batch=whole,
    )
    class_uses: Counter[int] = Counter()
    item_uses: Counter[int] = Counter()
    home = dict(labels.tolist())
    for batch in epochs(sampler, 8):
        assert len(set(batch)) == len(batch)
        assert all(count == m for count in Counter(labels[batch, 0].tolist()).values())
        if whole:
            assert len(set(labels[batch, 1])) == 1
        class_uses.update(set(labels[batch, 0].tolist()))
        item_uses.update(batch)
        for d in range(len(sizes)):
            counts = [class_uses[c] for c in home if home[c] == d]
            assert max(counts) - min(counts) <= 1
    for label in home:
        members = np.flatnonzero(labels[:, 0] == label)
        counts = [item_uses[i] for i in members]
        per_pass = math.ceil(len(members) / m)
        complete, begun = divmod(class_uses[label], per_pass)
        # Each complete pass shows every item once, and up to m - 1 of them twice.
        assert min(counts) >= complete
        assert sum(counts) == class_uses[label] * m
        if len(members) % m == 0:
            assert max(counts) <= complete + (begun > 0)


def test_with_m_classes_take_equal_turns_so_that_small_ones_are_back_before_large_ones_are_through() -> None:
    labels = make_labels([[4, 5, 12]])
    sampler = MultiDistributionSampler(labels, 6, 2, batches_per_epoch=6)
    uses = Counter(item for batch in sampler for item in batch)
    counts = [sorted(uses[i] for i in np.flatnonzero(labels[:, 0] == c)) for c in range(3)]
    # Each class had 6 turns of 2: 4 items in 2 turns, 5 in 3 (of which one repeats an item), 12 in 6.
    assert counts[0] == [3] * 4
    assert sum(counts[1]) == 12
    assert counts[1][0] >= 2
    assert counts[2] == [1] * 12


@SETTINGS
@given(some_sizes, st.integers(1, 3), st.sampled_from([1, 2, 3, 4]), balances, st.integers(0, 2**31))
def test_ranks_are_disjoint_and_together_the_batch_of_one_process(
    sizes: list[list[int]], share: int, world: int, balance: Any, seed: int
) -> None:
    labels = make_labels(sizes)
    whole = list(build(labels, share * world, balance=balance, seed=seed))
    ranks = [
        list(MultiDistributionSampler(labels, share * world, balance=balance, seed=seed, rank=r, world_size=world))
        for r in range(world)
    ]
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        assert [len(part) for part in parts] == [share] * world
        assert [i for part in parts for i in part] == batch


@SETTINGS
@given(
    st.lists(st.lists(st.integers(3, 9), min_size=2, max_size=8), min_size=1, max_size=4),
    st.integers(1, 8),
    st.sampled_from([None, 1, 2, 3]),
    balances,
    st.booleans(),
    st.integers(0, 2),
    st.integers(0, 40),
    st.integers(0, 2**31),
)
def test_resume_at_any_batch_continues_exactly(
    sizes: list[list[int]], places: int, m: int | None, balance: Any, whole: bool, epoch: int, at: int, seed: int
) -> None:
    labels, batch_size = make_labels(sizes), places * (m or 1)
    arguments = {"m": m, "balance": balance, "one_distribution_per_batch": whole, "seed": seed}
    uninterrupted = build(labels, batch_size, **arguments)
    batches = epochs(uninterrupted, 5)
    at %= len(uninterrupted)
    stopped = MultiDistributionSampler(labels, batch_size, **arguments)
    for _ in range(epoch):
        list(stopped)
    iterator = iter(stopped)
    for _ in range(at):
        next(iterator)
    state = pickle.loads(pickle.dumps(stopped.state_dict()))
    resumed = MultiDistributionSampler(labels, batch_size, **arguments)
    resumed.load_state_dict(state)
    assert epochs(resumed, 2) == batches[epoch * len(resumed) + at : (epoch + 2) * len(resumed)]


@pytest.mark.parametrize("balance", ["uniform", 2.0, 5.0, 1.0])
@pytest.mark.parametrize("whole", [False, True])
def test_empirical_rates_follow_the_temperature_law(balance: Any, whole: bool) -> None:
    sizes = [[20] * 20, [20] * 5, [10] * 4]
    labels = make_labels(sizes)
    batch_size = 7
    sampler = MultiDistributionSampler(
        labels, batch_size, balance=balance, one_distribution_per_batch=whole, batches_per_epoch=400, seed=3
    )
    batches = epochs(sampler, 2)
    draws = len(batches) if whole else len(batches) * batch_size
    counts = sum(np.bincount(labels[batch, 1], minlength=3) for batch in batches) / (batch_size if whole else 1)
    rates = expected_rates(labels, balance)
    # Five standard deviations of a binomial; exact shares per batch vary less than that.
    bound = 5 * np.sqrt(draws * rates * (1 - rates))
    assert (np.abs(counts - draws * rates) <= bound).all()


def test_balance_by_classes_is_m_per_unique_class() -> None:
    labels = make_labels([[4] * 30, [40] * 10])
    sampler = MultiDistributionSampler(labels, 16, 4, balance_by="classes", batches_per_epoch=100)
    counts = np.sum([np.bincount(labels[b, 1], minlength=2) for b in sampler], axis=0)
    assert counts.tolist() == [pytest.approx(1200, abs=60), pytest.approx(400, abs=60)]
    uniform = MultiDistributionSampler(labels, 16, 4, "uniform", batches_per_epoch=100)
    assert all(np.bincount(labels[b, 1]).tolist() == [8, 8] for b in uniform)


def test_classes_mined_by_their_proxies() -> None:
    labels = make_labels([[4] * 12] * 3)
    # On each circle the neighbours of a class are those next to it.
    angle = torch.arange(36) % 12 * (2 * math.pi / 12)
    proxies = torch.stack([angle.cos(), angle.sin()], dim=1)
    sampler = MultiDistributionSampler(labels, 36, 2, "uniform", seed=5)
    sampler.set_proxies(proxies, neighbours=2)
    batches = list(sampler)
    for batch in batches:
        assert all(count == 2 for count in Counter(labels[batch, 0].tolist()).values())
        for d in range(3):
            classes = sorted(set(labels[batch, 0][labels[batch, 1] == d].tolist()))
            assert len(classes) == 6
            near = sum((c + 1 - 12 * d) % 12 + 12 * d in classes for c in classes)
            assert near >= 3
    resumed = MultiDistributionSampler(labels, 36, 2, "uniform", seed=5)
    sampler.set_epoch(0)
    iterator = iter(sampler)
    next(iterator)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == batches[1:]
    with pytest.raises(ValueError, match=r"\(36, D\)"):
        sampler.set_proxies(proxies[:5])
    with pytest.raises(ValueError, match="needs m"):
        MultiDistributionSampler(labels, 36).set_proxies(proxies)


def test_classes_keep_their_numbers_where_some_are_missing() -> None:
    """As in the labels of a part of a dataset."""
    labels = np.array([[c, 0] for c in (1, 2, 5, 7) for _ in range(4)])
    names = [f"c{number}" for number in range(9)]
    with pytest.raises(ValueError, match="1 classes have fewer than m=4 items, the first is 'c5' with 3"):
        MultiDistributionSampler(np.delete(labels, 8, axis=0), 8, 4, class_names=names)
    # By the rows of their numbers, 1 is near 7 and 2 near 5; a row of a missing class is nearest to 2.
    proxies = torch.zeros(9, 2)
    proxies[[1, 7, 2, 5, 4]] = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 1.0]])
    for named, rows in ((names, proxies), (None, proxies[:8])):
        sampler = MultiDistributionSampler(labels, 8, 4, class_names=named, batches_per_epoch=20)
        sampler.set_proxies(rows, neighbours=1)
        assert {tuple(sorted(set(labels[batch, 0].tolist()))) for batch in sampler} == {(1, 7), (2, 5)}
        with pytest.raises(ValueError, match=rf"proxies must have shape \({len(rows)}, D\)"):
            sampler.set_proxies(rows[[1, 2, 5, 7]])


class Positions(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


def test_is_a_batch_sampler_for_the_data_loader_also_with_workers_that_fetch_ahead() -> None:
    labels = make_labels([[5] * 6, [3] * 4])
    sampler = MultiDistributionSampler(labels, 6, balance=2.0)
    assert isinstance(sampler, BatchSampler)
    expected = epochs(MultiDistributionSampler(labels, 6, balance=2.0), 2)
    loader = DataLoader(Positions(len(labels)), batch_sampler=sampler, num_workers=1, prefetch_factor=3)
    assert len(loader) == len(sampler) == 7
    iterator = iter(loader)
    used = [next(iterator).tolist() for _ in range(3)]
    assert used == expected[:3]
    # The worker is ahead; only the caller knows what was used.
    state = sampler.state_dict(batches_consumed=3)
    assert (state["epoch"], state["batch"]) == (0, 3)
    resumed = MultiDistributionSampler(labels, 6, balance=2.0)
    resumed.load_state_dict(state)
    assert epochs(resumed, 2) == expected[3:]
    del iterator


def test_set_epoch() -> None:
    labels = make_labels([[5] * 6])
    sampler = MultiDistributionSampler(labels, 5)
    by_itself = epochs(sampler, 3)
    sampler.set_epoch(1)
    assert list(sampler) == by_itself[6:12]
    sampler.set_epoch(1, first_batch=4)
    assert list(sampler) == by_itself[10:12]
    assert list(sampler) == by_itself[12:]
    # Other generators are neither used nor disturbed.
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    list(sampler)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    with pytest.raises(ValueError, match="epoch"):
        sampler.set_epoch(-1)


def test_set_epoch_goes_on_where_a_loaded_state_stands_in_that_epoch() -> None:
    """Loops that call set_epoch at the beginning of every epoch do so after loading a checkpoint too."""
    labels = make_labels([[5] * 6])
    batches = epochs(MultiDistributionSampler(labels, 5), 3)
    resumed = MultiDistributionSampler(labels, 5)
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 1, "batch": 4})
    resumed.set_epoch(1)
    assert list(resumed) == batches[10:12]
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 0, "batch": 4})
    resumed.set_epoch(1)
    assert list(resumed) == batches[6:12]


def test_state_of_other_settings_is_refused() -> None:
    labels = make_labels([[5] * 6])
    state = MultiDistributionSampler(labels, 5).state_dict()
    other = make_labels([[5] * 6], seed=1)
    more = make_labels([[5] * 7])
    for sampler, message in [
        (
            MultiDistributionSampler(labels, 6),
            "settings (batch_size was 5, is 6; batches per epoch was 6, is 5): build",
        ),
        (MultiDistributionSampler(labels, 5, m=5), "settings (m was None, is 5): build"),
        (MultiDistributionSampler(more, 5, batches_per_epoch=6), "(items was 30, is 35; classes was 6, is 7): build"),
        (MultiDistributionSampler(make_labels([[5] * 3] * 2), 5), "(distributions was 1, is 2): build"),
        (MultiDistributionSampler(other, 5), "other labels or settings: build"),  # in another order
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            sampler.load_state_dict(state)
    # Another number of processes is fine.
    MultiDistributionSampler(labels, 5, rank=3, world_size=5).load_state_dict(state)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.lists(st.integers(1, 12), max_size=30))
def test_spaced_permutations(size: int, spacing: int, seed: int, takes: list[int]) -> None:
    spacing = min(size, spacing)
    stream = SpacedPermutations(size, spacing, (seed,))
    elements: list[int] = []
    for count in takes:
        chosen, rounds = stream.take(len(elements), min(count, spacing))
        assert rounds.tolist() == [(len(elements) + i) // size for i in range(len(chosen))]
        elements += chosen.tolist()
    for start in range(0, len(elements) - size + 1, size):
        assert sorted(elements[start : start + size]) == list(range(size))
    for start in range(len(elements) - spacing + 1):
        assert len(set(elements[start : start + spacing])) == spacing
    if elements:
        assert stream.take(0, 1)[0][0] == elements[0]


def test_a_class_that_is_too_small_is_named() -> None:
    labels = np.array([[0, 0]] * 4 + [[1, 0]] * 3)
    with pytest.raises(ValueError, match="the first is 'shoes/boots' with 3: lower m"):
        MultiDistributionSampler(labels, 4, 4, class_names=["shoes/sandals", "shoes/boots"])


def test_a_dataset_is_no_labels_and_a_batch_sampler_no_sampler() -> None:
    dataset = UnifiedDataset({"shoes": [(torch.zeros(3, 2, 2), number // 2) for number in range(4)]})
    with pytest.raises(TypeError, match=r"got a UnifiedDataset: pass its \.labels"):
        MultiDistributionSampler(dataset, 2)
    loader = DataLoader(dataset, sampler=MultiDistributionSampler(dataset.labels, 2), batch_size=2)
    with pytest.raises(TypeError, match="as batch_sampler=, not sampler="):
        next(iter(loader))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.arange(8)}, r"\(N, 2\)"),
        ({"labels": np.arange(8)[:, None]}, r"\(N, 2\)"),
        ({"labels": np.empty((0, 2), int)}, "labels are empty"),
        ({"labels": np.array([[0, 0], [0, 1]])}, "more than one distribution"),
        ({"labels": np.array([[0, 0], [-1, 1]])}, "negative"),
        ({"batch_size": 100}, "larger than the 26 items"),
        ({"batch_size": 24, "balance": "uniform"}, "12 items of distribution 1, which has 6"),
        ({"batch_size": 12, "m": 2, "balance": "uniform"}, "3 classes of m=2 items of distribution 1, which has 2"),
        ({"batch_size": 8, "m": 4}, "fewer than m=4 items, the first is class 5 with 3"),
        ({"batch_size": 7, "m": 2}, "multiple of m"),
        ({"m": 0}, "m must be at least 1"),
        ({"balance": "balanced"}, "balance must be"),
        ({"balance": 0.0}, "balance must be"),
        ({"balance_by": "images"}, "balance_by"),
        ({"batches_per_epoch": 0}, "batches_per_epoch"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "seed"),
        ({"rank": 0}, "together"),
        ({"rank": 2, "world_size": 2}, "rank must lie"),
        ({"rank": 0, "world_size": 3}, "all 3 processes"),
        ({"rank": 0, "world_size": 4, "drop_last": False}, "cannot share"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiDistributionSampler(**{"labels": make_labels([[4] * 5, [3] * 2]), "batch_size": 8, **arguments})


def test_a_distribution_of_one_class_cannot_be_compared_within_itself() -> None:
    labels = make_labels([[4] * 5, [8]])
    MultiDistributionSampler(labels, 4, balance=2.0)
    for arguments in ({"m": 2}, {"one_distribution_per_batch": True}):
        with pytest.raises(ValueError, match="distributions 1 have one class only"):
            MultiDistributionSampler(labels, 4, **arguments)


def test_errors_name_the_distribution_where_its_name_is_known() -> None:
    names = ["birds", "cars"]
    with pytest.raises(ValueError, match="distributions 'cars' have one class only"):
        MultiDistributionSampler(make_labels([[4] * 5, [8]]), 4, m=2, distribution_names=names)
    labels = make_labels([[4] * 5, [2] * 3])
    with pytest.raises(ValueError, match="12 items of distribution 'cars', which has 6"):
        MultiDistributionSampler(labels, 24, balance="uniform", distribution_names=names)
    with pytest.raises(ValueError, match="there are 1 distribution_names"):
        MultiDistributionSampler(labels, 4, balance="uniform", distribution_names=names[:1])


def test_settings_may_be_numpys_integers_and_must_be_numbers() -> None:
    labels = make_labels([[3, 3, 4], [5, 6]])
    plain = MultiDistributionSampler(labels, 6, m=2, seed=4, batches_per_epoch=3)
    given = {"m": np.int64(2), "seed": np.int32(4), "batches_per_epoch": np.uint8(3)}
    assert list(MultiDistributionSampler(labels, np.int64(6), **given)) == list(plain)  # type: ignore[arg-type]
    for name, value in (("m", 2.0), ("batches_per_epoch", 2.5), ("seed", None), ("batch_size", "6")):
        with pytest.raises(TypeError, match=re.escape(f"{name} must be a whole number, got {value!r}")):
            MultiDistributionSampler(labels, **{"batch_size": 6, name: value})  # type: ignore[arg-type]
    for balance in (np.int64(2), np.float32(2), torch.tensor(2.0)):
        assert list(MultiDistributionSampler(labels, 6, balance=balance)) == (  # type: ignore[arg-type]
            list(MultiDistributionSampler(labels, 6, balance=2.0))
        )
    with pytest.raises(TypeError, match='balance must be "proportional", "uniform" or a temperature > 0, got None'):
        MultiDistributionSampler(labels, 6, balance=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("begun", [0, 2])
def test_the_state_is_that_of_the_chosen_epoch(begun: int) -> None:
    """Also where the epoch before was cut short, or has ended."""
    labels = make_labels([[5] * 6])
    sampler, other = (MultiDistributionSampler(labels, 5, seed=3) for _ in range(2))
    batches = iter(sampler)
    for _ in range(begun):
        next(batches)
    sampler.set_epoch(5)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batch"]) == (5, 0)
    assert sampler.state_dict(0)["epoch"] == 5
    other.load_state_dict(sampler.state_dict())
    assert next(iter(other)) == next(iter(sampler))
