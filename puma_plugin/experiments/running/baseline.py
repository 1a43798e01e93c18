"""The result of an earlier evaluation, to compare with."""

import json
from pathlib import Path
from typing import Any

from puma_plugin.experiments.settings.results import METRICS


def read_baseline(path: Path) -> dict[str, Any]:
    """The result in a metrics.json of `puma train` or `puma evaluate`.

    Args:
        path: the file, or the folder that holds it.

    Returns:
        `RetrievalResult.to_dict(per_class=True)` of that evaluation.

    Raises:
        ValueError: there is no such file, it holds no or several evaluations, or one without sums by class.
    """
    file = path / METRICS if path.is_dir() else path
    wanted = "give the metrics.json of puma train or puma evaluate, or its folder"
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        results = [run["result"] for run in runs]
    except OSError as error:
        raise ValueError(f"--baseline {path} cannot be read ({error.strerror}); {wanted}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--baseline {path} is no result of an evaluation; {wanted}") from error
    if len(results) != 1:
        raise ValueError(f"--baseline {path} holds {len(results)} evaluations, one is needed; {wanted}")
    if not results[0].get("per_class"):
        raise ValueError(
            f"--baseline {path} carries no sums by class, without which a difference cannot be judged; give the result "
            "of puma evaluate"
        )
    return dict(results[0])
