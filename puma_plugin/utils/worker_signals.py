"""Signals in the worker processes of a data loader."""

import multiprocessing
import os
import signal
import threading


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """``worker_init_fn`` of a data loader: Ctrl-C, SIGTERM and SIGHUP are for the process that it belongs to.

    They may reach all processes of a terminal or of a scheduler's job; a worker that ended would break the step that
    its parent wants to finish. What the parent itself sends ends the worker. (Where Python cannot tell who sent a
    signal, as on macOS, SIGTERM is left as it is.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()  # under forkserver not the one that the system knows
    owner = os.getppid() if parent is None or parent.pid is None else parent.pid
    threading.Thread(target=_obey, args=(owner,), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
