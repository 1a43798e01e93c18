"""What the tests of the trainer share."""

import sys
from pathlib import Path

# Makes small_run and small_net importable: pytest's importlib mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
