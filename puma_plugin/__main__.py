"""`python -m puma_plugin` is the command `puma`, for launchers such as torchrun."""

import os
import sys

from puma_plugin.cli.main import main

if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as end:  # of a process that leaves the message to another
        code = int(end.code or 0)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # A thread of torch.distributed that asks for the interpreter while it shuts down aborts the process, after all
        # the work is done (github.com/pytorch/pytorch/pull/179291); so the interpreter is left without a shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
