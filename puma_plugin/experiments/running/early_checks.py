"""What is wrong with the settings whatever the images are, said before a million of them are listed."""

import importlib

from puma_plugin.datasets import read_few_shot
from puma_plugin.evaluation.search import load_faiss
from puma_plugin.experiments.contestants.build import check_backbone
from puma_plugin.experiments.contestants.lora import require_peft
from puma_plugin.experiments.contestants.loss import images_per_class, make_loss, make_miner
from puma_plugin.experiments.running.device import choose_device
from puma_plugin.experiments.running.processes import ALONE, Processes
from puma_plugin.experiments.settings.config import TrainConfig


def check_settings(config: TrainConfig, processes: Processes = ALONE, trains: bool = True) -> None:
    """Refuse a device, backbone, weight file, loss, miner or few-shot split that cannot be used.

    Nothing is downloaded, and of the images nothing is read. What hangs on them (batch sizes, class counts) is refused
    when the run is made.

    Args:
        trains: False for an evaluation, which has no loss and no few-shot split.

    Raises:
        ValueError: naming the setting.
        ImportError: a package that the settings need is not installed.
    """
    choose_device(config.device, processes.world_size, processes.local_rank)
    check_backbone(config.model)
    load_faiss()  # which the evaluation behind the training needs
    if config.report:  # its charts need matplotlib
        importlib.import_module("puma_plugin.experiments.reporting.figures")
    if config.model.method == "lora":
        require_peft()
    if not trains:
        return
    if config.model.trains:
        make_loss(config.loss, 2, config.model.embedding_size)
        make_miner(config.loss)
        images_per_class(config.loss)
    if config.data.few_shot is not None:
        read_few_shot(config.data.few_shot)
