"""The errors of every dataset here."""


class DatasetError(ValueError):
    """Something on disk is not as it must be. The message says which dataset, which file, and what to do."""


class DatasetNotFoundError(DatasetError):
    """No trace of the dataset is where it was looked for."""
