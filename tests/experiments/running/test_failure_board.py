"""How processes hear of each other's failures. Whole runs of several that fail are in test_processes.py."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from puma_plugin.experiments.running import failure_board

SILENT = """
import sys, time
from datetime import timedelta
import torch.distributed as dist

store = dist.TCPStore("localhost", int(sys.argv[1]), timeout=timedelta(seconds=60))
dist.init_process_group("gloo", store=store, rank=1, world_size=2, timeout=timedelta(seconds=60))
store.set("place 1", "pid 7 on elsewhere")
store.set("ready", "")
time.sleep(600)
"""


def board(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> failure_board.FailureBoard:
    monkeypatch.setattr(failure_board, "_GRACE", 0.1)
    return failure_board.FailureBoard(store, 0, 2, 1800.0)


LOST = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711\nin another line")
BROKEN = dist.DistNetworkError("the connection was broken")
EXPECTED = r"no answer from process 1 \(pid 7 on elsewhere\): it has died .*, or did not answer within process_time"


def test_a_process_that_died_is_not_said_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no launcher reports it: the connection is closed at once, long before the time is up."""
    store = dist.HashStore()
    store.set("place 1", "pid 7 on elsewhere")
    with pytest.raises(TimeoutError, match=EXPECTED):
        board(store, monkeypatch).speak_for_all(LOST)


def test_of_several_operations_each_tells_of_a_silent_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first one's time is up, gloo ends the others with another message, as in DistributedDataParallel."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    other = subprocess.Popen([sys.executable, "-c", SILENT, str(store.port)])
    try:
        dist.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=60))
        store.wait(["ready"])
        options = dist.AllreduceOptions()
        errors = []
        works = []
        for seconds in (1, 60):
            options.timeout = timedelta(seconds=seconds)
            works.append(dist.group.WORLD.allreduce([torch.ones(1)], options))  # type: ignore[union-attr]
        for work in works:
            with pytest.raises(RuntimeError) as raised:
                work.wait()
            errors.append(raised.value)
        assert len({str(error) for error in errors}) == 2
        for error in errors:
            with pytest.raises(TimeoutError, match=EXPECTED):
                board(store, monkeypatch).speak_for_all(error)
            store.delete_key("failed 0")
    finally:
        other.kill()
        other.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        # One speaks for all that found the same.
        ([ValueError("no data"), ValueError("no data"), ValueError("no data")], ["own", "leaves", "leaves"]),
        ([ValueError("7"), KeyError(7), ValueError("no disk")], ["own", "own", "own"]),
        # Who lost the others leaves it to who knows why.
        ([LOST, ValueError("no data"), BROKEN], ["leaves", "own", "leaves"]),
        ([None, ValueError("no data")], ["", "own"]),
        # All are alive, and none knows why.
        ([LOST, LOST], ["the processes lost each other ([gloo/transport/tcp/pair.cc:547] Connection closed", "leaves"]),
        ([None, BROKEN, LOST], ["", "no answer from process 0 (pid ", "leaves"]),
    ],
)
def test_one_process_says_what_happened(
    errors: list[Exception | None], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that have an error at the same time. The processes are threads here."""
    monkeypatch.setattr(failure_board, "_GRACE", 0.5)
    store = dist.HashStore()
    boards = [failure_board.FailureBoard(store, rank, len(errors), 1800.0) for rank in range(len(errors))]

    def said(board: failure_board.FailureBoard, error: Exception | None) -> str:
        try:
            if error is not None:
                board.speak_for_all(error)
        except TimeoutError as told:
            return str(told)
        except SystemExit as left:
            return "leaves" if left.code == 2 else str(left.code)
        return "" if error is None else "own"

    with ThreadPoolExecutor(len(errors)) as threads:
        found = list(threads.map(said, boards, errors))
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True)), found
    assert [not text for text in found] == [not start for start in expected]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # it would be a traceback
def test_without_the_store_only_who_lost_the_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process has ended."""
    monkeypatch.setattr(failure_board, "_GRACE", 0.1)
    monkeypatch.setattr(failure_board, "_STORE_PATIENCE", 0.1)
    store = dist.TCPStore("localhost", 0, 1, is_master=True, wait_for_workers=False)
    board = failure_board.FailureBoard(dist.TCPStore("localhost", store.port, 1, is_master=False), 1, 2, 9)
    del store
    board.speak_for_all(ValueError("no data"))
    with pytest.raises(TimeoutError, match="no answer from process 0: it has died"):
        board.speak_for_all(BROKEN)
