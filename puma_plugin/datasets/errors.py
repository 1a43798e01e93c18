"""The errors of every dataset here."""


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
