"""The errors of every dataset here."""

from collections.abc import Sequence


class DatasetError(ValueError):
    """Something on disk is not as it must be. The message says which dataset, which file, and what to do."""


class DatasetNotFoundError(DatasetError):
    """No trace of the dataset is where it was looked for.

    Args:
        message: which dataset, where, and what to do.
        hint: where it may be; empty if nothing is known.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def told_together(faults: Sequence[str], advice: str = "") -> str:
    """The messages of one or several datasets as one, each in lines of its own.

    Of several only the first lines are kept: the layouts that some go on with would bury the rest.
    """
    kept = faults if len(faults) == 1 else [fault.splitlines()[0].rstrip(":") for fault in faults]
    return "\n".join([*kept, *([advice] if advice and advice not in "\n".join(kept) else [])])
