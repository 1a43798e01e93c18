"""A common word, whatever an earlier start left in the store."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from puma_plugin.experiments.running.attempt import common_word

PATIENCE = timedelta(seconds=30)


def start(store: dist.Store, world_size: int) -> set[str]:
    words: dict[int, str] = {}

    def ask(rank: int) -> None:
        words[rank] = common_word(store, rank, world_size, PATIENCE)

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in reversed(range(world_size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(words) == world_size
    return set(words.values())


def test_each_start_has_a_word_of_its_own() -> None:
    store = dist.HashStore()
    found = [start(store, 4) for _ in range(3)]
    assert [len(words) for words in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3


def test_a_process_that_died_in_between_is_replaced() -> None:
    """Rank 0 has answered the dead one; it answers the next one as well."""
    store = dist.HashStore()
    store.set("hello 1", "a word of the dead")
    assert len(start(store, 2)) == 1


def test_one_process_needs_nobody() -> None:
    assert common_word(dist.HashStore(), 0, 1, timedelta(0))


@pytest.mark.parametrize(("rank", "message"), [(0, "no word from process 1, 2"), (1, "process 0 has not answered")])
def test_who_does_not_come_is_named(rank: int, message: str) -> None:
    with pytest.raises(TimeoutError, match=message):
        common_word(dist.HashStore(), rank, 3, timedelta(seconds=0.1))
