"""Worker processes of a data loader end when their own process says so, and by nobody else's signal."""

import multiprocessing
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event

import pytest

from puma_plugin.utils.worker_signals import leave_signals_to_the_parent


def work(ready: Event) -> None:
    leave_signals_to_the_parent()
    ready.set()
    time.sleep(60)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_only_the_parent_ends_a_worker(method: str) -> None:
    context = multiprocessing.get_context(method)
    ready = context.Event()
    process = context.Process(target=work, args=(ready,), daemon=True)
    process.start()
    try:
        assert ready.wait(60)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            another = f"import os; os.kill({process.pid}, {number:d})"
            subprocess.run([sys.executable, "-c", another], check=True)
        process.join(0.5)
        assert process.exitcode is None
        process.terminate()
        process.join(10)
        assert process.exitcode == 0
    finally:
        process.kill()
