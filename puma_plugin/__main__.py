"""`python -m puma_plugin` is the command `puma`, for launchers such as torchrun."""

import sys

from puma_plugin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
