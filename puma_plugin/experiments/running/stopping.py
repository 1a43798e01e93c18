"""Ctrl-C, SIGTERM and SIGHUP, taken where a run can be continued from."""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
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
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self.take) for number in numbers}
        self.patient = True
        try:
            yield
        finally:
            self.patient = False
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
