"""The optional dependencies of the embedded benchmark, with an error that says what to install."""

from importlib import import_module
from pathlib import Path


def _missing(package: str, what: str) -> ImportError:
    return ImportError(
        f"the embedded benchmark needs {package} for its {what}; install it with: pip install 'puma_plugin[plots]'"
    )


def require_sklearn() -> None:
    """Raise an ImportError with the remedy unless scikit-learn can be imported."""
    try:
        import_module("sklearn.datasets")
    except ImportError as error:
        raise _missing("scikit-learn", "digits and photos") from error


def matplotlib_data(*parts: str) -> Path:
    """Path of a file that matplotlib ships; an ImportError names the extra to install if it is absent."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        raise _missing("matplotlib", "fonts and pictures") from error
    path = Path(matplotlib.get_data_path()).joinpath(*parts)
    if not path.exists():
        raise ImportError(f"this matplotlib ({matplotlib.__version__}) does not ship {path}; install matplotlib>=3.8")
    return path
