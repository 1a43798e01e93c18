"""Remember which items each batch holds until the batch is used."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler


class RecordedBatches(BatchSampler):
    """Passes the batches of another batch sampler on and keeps them in ``pending``, oldest first.

    A DataLoader with workers asks for batches long before they are used; it returns them in order, so the batch in use
    is the oldest pending one.

    Args:
        batches: the other sampler.
        batch_size: see BatchSampler.
        with_pass: pass (pass, position) on for :class:`SeededItems` instead of position.

    Attributes:
        pass_number: of the pass that the next ``iter()`` begins.
    """

    def __init__(self, batches: Iterable[list[int]], batch_size: int, with_pass: bool = False) -> None:
        super().__init__(range(0), batch_size, False)
        self.batches = batches
        self.with_pass = with_pass
        self.pass_number = 0
        self.pending: deque[list[int]] = deque()

    def __iter__(self) -> Iterator[list[Any]]:
        self.pending.clear()
        number = self.pass_number
        for batch in self.batches:
            self.pending.append(batch)
            yield [(number, position) for position in batch] if self.with_pass else batch

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]
