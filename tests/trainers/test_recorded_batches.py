"""Which items each batch holds, also where a loader asks ahead and begins anew."""

from puma_plugin.trainers.recorded_batches import RecordedBatches

BATCHES = [[4, 1], [0, 3], [2, 5]]


def test_batches_are_passed_on_and_pending_until_they_are_used() -> None:
    recorded = RecordedBatches(BATCHES, 2)
    assert len(recorded) == 3
    assert recorded.batch_size == 2
    asked = iter(recorded)
    assert [next(asked), next(asked)] == BATCHES[:2]
    assert list(recorded.pending) == BATCHES[:2]
    assert recorded.pending.popleft() == [4, 1]
    assert next(asked) == [2, 5]
    assert list(recorded.pending) == BATCHES[1:]


def test_a_new_pass_forgets_what_was_asked_for_and_not_used() -> None:
    recorded = RecordedBatches(BATCHES, 2)
    next(iter(recorded))
    assert next(iter(recorded)) == [4, 1]
    assert list(recorded.pending) == [[4, 1]]


def test_items_can_carry_the_number_of_the_pass() -> None:
    recorded = RecordedBatches(BATCHES, 2, with_pass=True)
    assert next(iter(recorded)) == [(0, 4), (0, 1)]
    recorded.pass_number = 7
    assert list(recorded) == [[(7, 4), (7, 1)], [(7, 0), (7, 3)], [(7, 2), (7, 5)]]
    assert list(recorded.pending) == BATCHES
