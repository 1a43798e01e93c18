"""Ctrl-C, SIGTERM and SIGHUP, taken where a run can be continued from."""

import math
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

# Seconds in which launchers of several processes may send a signal once more that each process has got already. (After
# 30 torchrun kills.)
_SENT_AGAIN = 20.0


class Stop:
    """Whether somebody asked for an end.

    Attributes:
        asked: a signal has come.
        patient: the first signal is only noted; else, or by the second, KeyboardInterrupt is raised at once.

    Args:
        several: this is one of several processes, for which a second signal counts only some seconds after the first.
        speaks: say what happens; of several processes, the first one does.
    """

    def __init__(self, several: bool = False, speaks: bool = True) -> None:
        self.asked = False
        self.patient = False
        self._impatient_after = _SENT_AGAIN if several else 0.0
        self._speaks = speaks
        self._since = 0.0

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """The signals' handler."""
        now = time.monotonic()
        if number == signal.SIGHUP:
            _leave_terminal()
            if self.patient:  # who would say something, or press once more, is gone
                self.asked, self._since = True, now
                return
        if not self.patient or (self.asked and now - self._since >= self._impatient_after):
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked, self._since = True, now
        if self._speaks:
            once_more = "; once more stops at once" if not self._impatient_after else ""
            print(f"\nstopping after this step{once_more}", file=sys.stderr, flush=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C, SIGTERM and SIGHUP inside, patiently; in threads other than the main one do nothing.

        SIGHUP, which comes when a terminal is closed, stays ignored where it is (``nohup``).
        """
        with _handled([signal.SIGINT, signal.SIGTERM, *_heard(signal.SIGHUP)], self.take) as is_handled:
            self.patient = is_handled
            try:
                yield
            finally:
                self.patient = False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt inside, as Ctrl-C does, unless they are ignored already.

    A terminal or a scheduler may send more than one: those right behind the first do not disturb the end that it began.
    """
    since = -math.inf

    def take(number: int, frame: FrameType | None = None) -> None:
        nonlocal since
        if number == signal.SIGHUP:
            _leave_terminal()
        now = time.monotonic()
        if now - since >= _SENT_AGAIN:
            since = now
            raise KeyboardInterrupt

    with _handled(_heard(signal.SIGINT, signal.SIGTERM, signal.SIGHUP), take):
        yield


def _heard(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those that are not ignored."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def _handled(numbers: Sequence[signal.Signals], take: Callable[[int, FrameType | None], None]) -> Iterator[bool]:
    """Hand these signals to `take` inside. Gives whether it does: only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.signal(number, take) for number in numbers}
    try:
        yield True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Output that went to a terminal goes nowhere from now on: where it is closed, writing is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
