"""Signals that ask a run to stop; that it then goes on from there is tested with the command."""

import os
import pty
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from puma_plugin.experiments.running.stopping import Stop, ended_by_signals


def test_the_first_is_noted_and_the_second_stops_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stop.listening():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        assert "once more stops at once" in capsys.readouterr().err
        signal.raise_signal(signal.SIGTERM)
    assert not stop.patient


def test_without_patience_the_first_stops() -> None:
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stop.listening():  # noqa: PT012
        stop.patient = False
        signal.raise_signal(signal.SIGINT)
    assert not stop.asked


def test_other_threads_have_no_signals() -> None:
    """Where the handlers cannot be set, the work goes on as without them."""
    stop, worked = Stop(), []

    def work() -> None:
        with stop.listening():
            worked.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert worked == [before]


def test_of_several_processes_a_signal_that_comes_twice_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher sends what it gets to processes that have got it from the terminal. Later ones stop at once."""
    stop = Stop(several=True, speaks=False)
    with pytest.raises(KeyboardInterrupt), stop.listening():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 25.0)
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == ""


def test_of_several_processes_a_launcher_may_send_another_signal_behind_a_hangup() -> None:
    stop = Stop(several=True, speaks=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_is_a_signal_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        stop = Stop(speaks=False)
        with stop.listening():
            for _ in range(2):  # a shell and the system may both send one
                signal.raise_signal(signal.SIGHUP)
            assert stop.asked
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        stop = Stop(speaks=False)
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_as_ctrl_c_and_others_right_behind_it_are_none(
    how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    before = signal.signal(how, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), ended_by_signals():  # noqa: PT012
            try:
                signal.raise_signal(how)
            finally:
                signal.raise_signal(how)
                ended.append("in order")
                # One that comes much later is heard: something hangs.
                now = time.monotonic()
                monkeypatch.setattr(time, "monotonic", lambda: now + 25.0)
                signal.raise_signal(how)
                ended.append("never")
        assert ended == ["in order"]
        assert signal.getsignal(how) is signal.SIG_DFL
        signal.signal(how, signal.SIG_IGN)  # as nohup and a shell without a terminal do
        with ended_by_signals():
            signal.raise_signal(how)
    finally:
        signal.signal(how, before)


IN_A_TERMINAL = """
import signal, sys, time
from pathlib import Path
from puma_plugin.experiments.running.stopping import Stop
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may have been started with nohup
stop = Stop()
with stop.listening():
    print("ready", flush=True)
    end = time.monotonic() + 60
    while not stop.asked and time.monotonic() < end:
        time.sleep(0.01)
    print("nobody reads this", flush=True)
    print("nor this", file=sys.stderr, flush=True)
Path(sys.argv[1]).write_text(f"went on to its end, {stop.asked}")
"""


def test_a_closed_terminal_lets_the_work_go_on_to_a_place_to_stop_at(tmp_path: Path) -> None:
    """Without a terminal every word is an error; a step and its checkpoint must not be lost for that."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", IN_A_TERMINAL, str(tmp_path / "end")])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "end").read_text() == "went on to its end, True"
