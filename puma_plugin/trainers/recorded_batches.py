"""Remember which items each batch holds until the batch is used."""

from collections import deque
from collections.abc import Iterable, Iterator

from torch.utils.data import BatchSampler


class RecordedBatches(BatchSampler):
    """Passes the batches of another batch sampler on and keeps them in ``pending``, oldest first.

    A DataLoader with workers asks for batches long before they are used; it returns them in order, so the batch in use
    is the oldest pending one.
    """

    def __init__(self, batches: Iterable[list[int]], batch_size: int) -> None:
        super().__init__(range(0), batch_size, False)
        self.batches = batches
        self.pending: deque[list[int]] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        self.pending.clear()
        for batch in self.batches:
            self.pending.append(batch)
            yield batch

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]
