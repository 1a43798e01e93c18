"""Training has diverged."""


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient is NaN or infinite; weights and the last checkpoint are those of before this step.

    Attributes:
        epoch, iteration: of the step, counted as by the trainer.
        item_ids: ids of the items of the batch, empty where the dataset has none.
    """

    def __init__(self, message: str, epoch: int, iteration: int, item_ids: list[int]) -> None:
        super().__init__(message)
        self.epoch, self.iteration, self.item_ids = epoch, iteration, item_ids
