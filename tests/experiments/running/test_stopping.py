"""Signals that ask a run to stop; that it then goes on from there is tested with the command."""

import signal
import threading
import time

import pytest

from puma_plugin.experiments.running.stopping import Stop


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


def test_a_closed_terminal_is_a_signal_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        stop = Stop(speaks=False)
        with stop.listening():
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
