"""Training has diverged."""


class NonFiniteLossError(RuntimeError):
    """NaN or infinity in the loss or a gradient; weights and the last checkpoint are those of before this step.

    Or in the embeddings of an evaluation between two epochs.

    Attributes:
        ADVICE: what helps in most cases.
        epoch, iteration: of the step, counted as by the trainer.
        item_ids: ids of the items of the batch, empty where the dataset has none.
    """

    ADVICE = "Lower the learning rate, clip gradients (clip_value), or use bfloat16 instead of float16"

    def __init__(self, message: str, epoch: int, iteration: int, item_ids: list[int]) -> None:
        super().__init__(message, epoch, iteration, item_ids)  # all of them, or it cannot be sent between processes
        self.epoch, self.iteration, self.item_ids = epoch, iteration, item_ids

    def __str__(self) -> str:
        return str(self.args[0])
