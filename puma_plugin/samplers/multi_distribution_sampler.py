"""Batches over several distributions: proportional, uniform or in between; m per class; resumable; by rank."""

import hashlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import BatchSampler

from puma_plugin.samplers.allocation import Allocation, Balance, rates
from puma_plugin.samplers.class_items import ClassItems
from puma_plugin.samplers.nearest_classes import nearest_classes
from puma_plugin.samplers.spaced_permutations import SpacedPermutations
from puma_plugin.utils import distributed
from puma_plugin.utils.arrays import IntArray
from puma_plugin.utils.labels import split_labels


class MultiDistributionSampler(BatchSampler):
    """Batch sampler for labels (class, distribution): ``sampler=`` of pml trainers, ``batch_sampler=`` of DataLoader.

    The paper's setting is ``MultiDistributionSampler(labels, batch_size)``: a plain shuffle of everything, new in
    every epoch. All other settings give each distribution an exact share of every batch: its expected number of
    places, rounded up or down, with the rate ``size ** (1 / temperature)``.

    What comes up when, over as many epochs as it takes; no item (and with ``m`` no class) is twice in a batch:

    - The plain shuffle: each epoch is one pass over everything; with ``drop_last`` the last ``N % batch_size`` items of
      its order are left out of that epoch.
    - Other settings without ``m``: every item of a distribution comes up before any of it repeats.
    - With ``m`` this holds for the classes of a distribution and for the items of a class, but not for the items of a
      distribution: its classes take equal turns, so the items of a small class are back before those of a large one
      are through. A class whose size m does not divide repeats up to m - 1 items in the group that exhausts it.

    Batches are a function of the labels, the settings, the seed, the epoch and the batch number, and of nothing else:
    no global random state is read or changed. Each pass begins the next epoch, so trainers that never call
    ``set_epoch`` get new batches too; ``set_epoch`` chooses the epoch of the next ``iter()``.

    Several processes: ``batch_size`` counts the items of all processes. Rank r gets the r-th of ``world_size`` equal
    slices of each batch; the slices together are the batch of one process, in order. Where something else slices the
    batches, such as accelerate with ``split_batches=True``, give ``rank=0, world_size=1``.

    The settings of the authors' published code: a plain shuffle (the default); m images of each of random classes:
    ``m=m, balance_by="classes"``; equally many classes per dataset: ``m=m, balance="uniform"``; classes that are near
    each other: ``m=m`` and :meth:`set_proxies`.

    Args:
        labels: (N, 2) integers, column 0 class, column 1 distribution.
        batch_size: of all processes together.
        m: items per class; None: classes are not looked at.
        balance: "proportional" (T = 1), "uniform" (T = infinity) or a temperature T > 0.
        one_distribution_per_batch: every batch from one distribution, drawn by the rates.
        balance_by: what the size of a distribution is: its "items" or its "classes".
        batches_per_epoch: default: as many as it takes to hand out N items.
        seed: names the order.
        rank, world_size: default: those of torch.distributed, or 0 and 1.
        drop_last: leave out an incomplete last batch (a plain shuffle only has one).
        distribution_names, class_names: name of distribution and class 0, 1, ... for error messages, such as
            ``UnifiedDataset.distribution_names`` and ``class_names``; default: the numbers.

    Raises:
        TypeError: a dataset in place of its labels, or a setting that is no number.
        ValueError: labels of another form, a batch the settings cannot fill, a class with fewer than m items, a
            distribution of one class where classes are compared within it; each names what to change.
    """

    def __init__(
        self,
        labels: Any,
        batch_size: int,
        m: int | None = None,
        balance: Balance = "proportional",
        *,
        one_distribution_per_batch: bool = False,
        balance_by: Literal["items", "classes"] = "items",
        batches_per_epoch: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = True,
        distribution_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._numbers, classes, distributions = split_labels(labels)
        self._num_classes = max(len(class_names or ()), int(self._numbers[-1]) + 1)
        batch_size, seed = _whole("batch_size", batch_size), _whole("seed", seed)
        m = None if m is None else _whole("m", m)
        batches_per_epoch = None if batches_per_epoch is None else _whole("batches_per_epoch", batches_per_epoch)
        super().__init__(range(len(classes)), batch_size, drop_last)
        self.m, self.balance, self.balance_by = m, balance, balance_by
        self.one_distribution_per_batch = one_distribution_per_batch
        self.seed = seed
        self.rank, self.world_size = _place(rank, world_size)
        self._check_settings(batches_per_epoch)
        self._size = len(classes)
        self._plain = balance == "proportional" and m is None and not one_distribution_per_batch
        self._plain = self._plain and balance_by == "items" and batches_per_epoch is None
        whole, rest = divmod(self._size, batch_size)
        self._length = batches_per_epoch or (whole if drop_last or not rest else whole + 1)
        if self._length == 0:
            raise ValueError(f"batch_size {batch_size} is larger than the {self._size} items: lower it")
        if self._plain and not drop_last and rest % self.world_size:
            raise ValueError(
                f"drop_last=False leaves a last batch of {rest} items, which {self.world_size} processes cannot share "
                "equally: use drop_last=True"
            )
        settings = self._settings()
        counts = {"items": self._size, "classes": int(classes.max()) + 1}
        self._made_of = {**settings, **counts, "distributions": len(np.unique(distributions))}
        self._fingerprint = _fingerprint(settings, classes, distributions)
        self._neighbours: IntArray | None = None
        self._class_items: ClassItems | None = None
        if not self._plain:
            self._prepare(classes, distributions, distribution_names, class_names)
        self._permutation: tuple[int, IntArray] | None = None
        self._counts: tuple[int, IntArray, IntArray] | None = None
        self._next = (0, 0)
        self._current: tuple[int, int] | None = None

    def _check_settings(self, batches_per_epoch: int | None) -> None:
        if self.balance_by not in ("items", "classes"):
            raise ValueError(f'balance_by must be "items" or "classes", got {self.balance_by!r}')
        if self.m is not None and self.m < 1:
            raise ValueError(f"m must be at least 1 (or None), got {self.m}")
        if self.m is not None and self.batch_size % self.m:
            raise ValueError(f"batch_size must be a multiple of m, got {self.batch_size} and m={self.m}")
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size counts the items of all {self.world_size} processes and must be a multiple of their "
                f"number, got {self.batch_size}"
            )
        if batches_per_epoch is not None and batches_per_epoch < 1:
            raise ValueError(f"batches_per_epoch must be at least 1, got {batches_per_epoch}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must lie in 0..2^63 - 1, got {self.seed}")

    def _prepare(
        self,
        classes: IntArray,
        distributions: IntArray,
        names: Sequence[str] | None,
        class_names: Sequence[str] | None,
    ) -> None:
        """Set up what each distribution hands out (its items, or its classes) and how many places it gets."""
        numbers, item_counts = np.unique(distributions, return_counts=True)
        if names is not None and numbers[-1] >= len(names):
            raise ValueError(f"labels name distribution {numbers[-1]}, but there are {len(names)} distribution_names")
        called = [str(number) if names is None else repr(names[number]) for number in numbers.tolist()]
        first_of_class = np.unique(classes, return_index=True)[1]
        home = np.searchsorted(numbers, distributions[first_of_class])
        class_counts = np.bincount(home, minlength=len(numbers))
        if (self.m or self.one_distribution_per_batch) and (class_counts < 2).any():
            alone = ", ".join(called[d] for d in np.flatnonzero(class_counts < 2))
            raise ValueError(
                f"distributions {alone} have one class only, so that their classes cannot be told apart: leave them "
                "out, or use m=None without one_distribution_per_batch"
            )
        sizes = item_counts if self.balance_by == "items" else class_counts
        places = self.batch_size // (self.m or 1)
        shares = rates(sizes, self.balance)
        self._allocation = Allocation(shares, places, self._length, self.one_distribution_per_batch, (self.seed, 0))
        units = item_counts if self.m is None else class_counts
        most = self._allocation.most()
        short = np.flatnonzero(most > units)
        if len(short):
            d = int(short[0])
            unit = "items" if self.m is None else f"classes of m={self.m} items"
            raise ValueError(
                f"a batch of {self.batch_size} takes up to {most[d]} {unit} of distribution {called[d]}, which has "
                f"{units[d]}: lower batch_size, choose a balance nearer to proportional"
                + ("" if self.m is None else ", or raise m")
            )
        # Members of distribution d: item positions, or class numbers.
        owner = np.searchsorted(numbers, distributions) if self.m is None else home
        order = np.argsort(owner, kind="stable")
        self._members = np.split(order, np.cumsum(units)[:-1])
        self._streams = [
            SpacedPermutations(int(units[d]), max(int(most[d]), 1), (self.seed, 1, d)) for d in range(len(units))
        ]
        if self.m is not None:
            self._class_items = ClassItems(classes, self.m, self.seed)
            few = np.flatnonzero(self._class_items.sizes < self.m)
            if len(few):
                first, names_of_classes = int(self._numbers[few[0]]), class_names or []
                called_class = repr(names_of_classes[first]) if first < len(names_of_classes) else f"class {first}"
                raise ValueError(
                    f"{len(few)} classes have fewer than m={self.m} items, the first is {called_class} with "
                    f"{self._class_items.sizes[few[0]]}: lower m or leave these classes out"
                )
        self._home = home

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: the epoch counts as begun when its first batch is asked for. A DataLoader with workers calls
        # iter() twice and uses the second.
        epoch, first = self._next
        self._next = (epoch + 1, 0)
        self._current = (epoch, first)
        for number in range(first, self._length):
            batch = self.global_batch(epoch, number)
            share = -(-len(batch) // self.world_size)
            self._current = (epoch, number + 1)
            yield batch[self.rank * share : (self.rank + 1) * share].tolist()

    def set_epoch(self, epoch: int, first_batch: int | None = None) -> None:
        """Choose the epoch of the next ``iter()``, and the batch it begins with.

        ``first_batch=None`` means the beginning, or the place that :meth:`load_state_dict` set within this very epoch.

        Raises:
            ValueError: a negative epoch, or a batch that the epoch has not.
        """
        if epoch < 0 or (first_batch is not None and not 0 <= first_batch <= self._length):
            raise ValueError(f"epoch must be >= 0 and first_batch in 0..{self._length}, got {epoch} and {first_batch}")
        if first_batch is None:
            first_batch = self._next[1] if epoch == self._next[0] else 0
        self._next = (epoch, first_batch)
        self._current = None

    def set_proxies(self, proxies: Any, neighbours: int = 3) -> None:
        """From now on fill batches with classes that are near each other: each drawn class brings its nearest ones.

        Args:
            proxies: (num_classes, D), row c that of class c of ``labels``, e.g. ``loss.W.t()``. There are as many
                classes as ``class_names``, or else up to the last in the labels; rows of missing ones are left aside.
            neighbours: how many classes of the same distribution each drawn class brings along.

        Call it between epochs, with what was learned so far. Items then come up at random within their classes: the
        promise that all come up before any repeats does not hold.

        Raises:
            ValueError: ``m`` is None, or the proxies have another shape.
        """
        if self._class_items is None or self.m is None:
            raise ValueError("set_proxies needs m: with m=None classes are not looked at")
        homes = np.full(self._num_classes, -1, dtype=np.int64)
        homes[self._numbers] = self._home
        nearest = nearest_classes(proxies, homes, neighbours)[self._numbers]
        self._neighbours = np.where(nearest < 0, -1, np.searchsorted(self._numbers, nearest))

    def global_batch(self, epoch: int, number: int) -> IntArray:
        """Item positions of batch ``number`` of ``epoch``, for all processes together."""
        if self._plain:
            if self._permutation is None or self._permutation[0] != epoch:
                self._permutation = (epoch, np.random.default_rng((self.seed, 2, epoch)).permutation(self._size))
            return self._permutation[1][number * self.batch_size : (number + 1) * self.batch_size]
        if self._counts is None or self._counts[0] != epoch:
            counts = self._allocation.counts(epoch)
            starts = self._allocation.before(epoch) + np.cumsum(counts, axis=0) - counts
            self._counts = (epoch, counts, starts)
        _, counts, starts = self._counts
        chosen, rounds = [], []
        for d in np.flatnonzero(counts[number]).tolist():
            places, turn = self._streams[d].take(int(starts[number, d]), int(counts[number, d]))
            chosen.append(self._members[d][places])
            rounds.append(turn)
        members, uses = np.concatenate(chosen), np.concatenate(rounds)
        shuffle = np.random.default_rng((self.seed, 3, epoch, number))
        if self._class_items is None:
            return shuffle.permutation(members)
        if self._neighbours is not None:
            members = self._bring_neighbours(members)
            uses = np.full(len(members), epoch * self._length + number)
        return shuffle.permutation(self._class_items.groups(members, uses)).reshape(-1)

    def _bring_neighbours(self, drawn: IntArray) -> IntArray:
        """Replace the later drawn classes of each distribution by the nearest ones of the earlier."""
        assert self._neighbours is not None
        taken: list[int] = []
        for d in np.unique(self._home[drawn]):
            mine = drawn[self._home[drawn] == d].tolist()
            chosen: dict[int, None] = {}
            for anchor in mine:
                for label in [anchor, *self._neighbours[anchor].tolist()]:
                    if len(chosen) < len(mine) and label >= 0:
                        chosen[label] = None
            taken += chosen
        return np.array(taken, np.int64)

    def state_dict(self, batches_consumed: int | None = None) -> dict[str, Any]:
        """Where the sampler stands, to continue with the very next batch after :meth:`load_state_dict`.

        Args:
            batches_consumed: batches of this epoch that training has used, counted from the epoch's beginning. Needed
                with a DataLoader that has workers, which asks for batches ahead of their use. Default: all that were
                handed out.

        Raises:
            ValueError: more batches than an epoch has, or fewer than 0.
        """
        epoch, number = self._next if self._current is None else self._current
        if batches_consumed is not None:
            if not 0 <= batches_consumed <= self._length:
                raise ValueError(f"batches_consumed must lie in 0..{self._length}, got {batches_consumed}")
            number = batches_consumed
        if number >= self._length:
            epoch, number = epoch + 1, 0
        state: dict[str, Any] = {"epoch": epoch, "batch": number, "fingerprint": self._fingerprint}
        state["made_of"] = dict(self._made_of)
        if self._neighbours is not None:
            state["neighbours"] = torch.from_numpy(self._neighbours)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another sampler of the same labels and settings stood; rank and world size may differ.

        Raises:
            ValueError: the state comes from other labels or settings; the message says what differs.
        """
        if state["fingerprint"] != self._fingerprint:
            before = state["made_of"]
            differ = [
                f"{name} was {before[name]}, is {now}" for name, now in self._made_of.items() if before[name] != now
            ]
            what = f" ({'; '.join(differ)})" if differ else ""
            raise ValueError(
                f"this sampler state comes from other labels or settings{what}: build the sampler as in the run that "
                "saved it, from the same images"
            )
        self._next = (int(state["epoch"]), int(state["batch"]))
        self._current = None
        neighbours = state.get("neighbours")
        self._neighbours = None if neighbours is None else neighbours.numpy()

    def _settings(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "m": self.m,
            "balance": str(self.balance),
            "one_distribution_per_batch": self.one_distribution_per_batch,
            "balance_by": self.balance_by,
            "batches per epoch": self._length,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        return (
            f"MultiDistributionSampler({self._size} items, batch_size={self.batch_size}, m={self.m}, "
            f"balance={self.balance!r}, {self._length} batches per epoch, rank {self.rank} of {self.world_size})"
        )


def _fingerprint(settings: dict[str, Any], classes: IntArray, distributions: IntArray) -> str:
    digest = hashlib.sha256(repr(tuple(settings.values())).encode())
    digest.update(classes.tobytes())
    digest.update(distributions.tobytes())
    return digest.hexdigest()


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from error


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError("give rank and world_size together")
    if rank is None or world_size is None:
        return distributed.rank(), distributed.world_size()
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size - 1, got rank {rank} of {world_size}")
    return rank, world_size
