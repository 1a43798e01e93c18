"""How processes hear of each other's failures. Whole runs of several that fail are in test_processes.py."""

import pytest
import torch

from puma_plugin.experiments.running import failure_board


def test_a_process_that_died_is_not_said_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no launcher reports it: the connection is closed at once, long before the time is up."""
    monkeypatch.setattr(failure_board, "_GRACE", 0.1)
    store = torch.distributed.HashStore()
    store.set("place 1", "pid 7 on elsewhere")
    board = failure_board.FailureBoard(store, 0, 2, 1800.0)
    expected = r"no answer from process 1 \(pid 7 on elsewhere\): it has died .*, or did not answer within process_time"
    with pytest.raises(TimeoutError, match=expected):
        board.speak_for_all(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"))
