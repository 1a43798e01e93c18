"""What is told of an exception, also of one from a worker of a data loader."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from puma_plugin.utils.messages import message_of


class Failing(Dataset[int]):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


class Unreadable(Failing):
    def __getitem__(self, index: int) -> int:
        try:
            return super().__getitem__(index)
        except ValueError as error:
            raise OSError("cannot read /c") from error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no image"), "no image"),
        (
            ValueError("no image in /a\nsee: the list\n  File in quotes"),
            "no image in /a\nsee: the list\n  File in quotes",
        ),
        (OSError(2, "No such file", "/b"), "[Errno 2] No such file: '/b'"),
        (torch.OutOfMemoryError("no memory"), "no memory"),
        (ValueError(), "ValueError"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_the_message_is_that_of_the_cause(error: Exception, told: str, workers: int) -> None:
    with pytest.raises(type(error)) as raised:
        next(iter(DataLoader(Failing(error), num_workers=workers)))
    assert message_of(raised.value) == told


@pytest.mark.parametrize("workers", [0, 1])
def test_of_an_error_with_a_cause_it_is_its_own(workers: int) -> None:
    with pytest.raises(OSError) as raised:
        next(iter(DataLoader(Unreadable(ValueError("no header")), num_workers=workers)))
    assert message_of(raised.value) == "cannot read /c"


def test_words_of_torch_in_another_message_are_left_as_they_are() -> None:
    for said in ("an Original Traceback: a song", "Caught ValueError: a song"):
        assert message_of(ValueError(said)) == said
