"""How processes hear of each other's failures. Whole runs of several that fail are in test_processes.py."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from puma_plugin.experiments.running import failure_board

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711\nin another line")
BROKEN = torch.distributed.DistNetworkError("the connection was broken")


def test_a_process_that_died_is_not_said_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no launcher reports it: the connection is closed at once, long before the time is up."""
    monkeypatch.setattr(failure_board, "_GRACE", 0.1)
    store = torch.distributed.HashStore()
    store.set("place 1", "pid 7 on elsewhere")
    board = failure_board.FailureBoard(store, 0, 2, 1800.0)
    expected = r"no answer from process 1 \(pid 7 on elsewhere\): it has died .*, or did not answer within process_time"
    with pytest.raises(TimeoutError, match=expected):
        board.speak_for_all(LOST)


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
    store = torch.distributed.HashStore()
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
    store = torch.distributed.TCPStore("localhost", 0, 1, is_master=True, wait_for_workers=False)
    board = failure_board.FailureBoard(torch.distributed.TCPStore("localhost", store.port, 1, is_master=False), 1, 2, 9)
    del store
    board.speak_for_all(ValueError("no data"))
    with pytest.raises(TimeoutError, match="no answer from process 0: it has died"):
        board.speak_for_all(BROKEN)
