"""The optional dependency of the embedded benchmark, with an error that says what to install."""

from importlib import import_module
from pathlib import Path


def matplotlib_data(*parts: str) -> Path:
    """Path of a file that matplotlib ships; an ImportError names the extra to install if it is absent."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "the embedded benchmark needs matplotlib for its fonts and pictures; install it with: "
            "pip install 'puma_plugin[plots]'"
        ) from error
    path = Path(matplotlib.get_data_path()).joinpath(*parts)
    if not path.exists():
        raise ImportError(f"this matplotlib ({matplotlib.__version__}) does not ship {path}; install matplotlib>=3.8")
    return path
