"""Ctrl-C and SIGTERM, taken where a run can be continued from."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether somebody asked for an end.

    Attributes:
        asked: a signal has come.
        patient: the first signal is only noted; else, or by the second, KeyboardInterrupt is raised at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.patient = False

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """The signals' handler."""
        if self.asked or not self.patient:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C (SIGINT) and SIGTERM inside, patiently; in threads other than the main one do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.take) for number in (signal.SIGINT, signal.SIGTERM)}
        self.patient = True
        try:
            yield
        finally:
            self.patient = False
            for number, handler in before.items():
                signal.signal(number, handler)
