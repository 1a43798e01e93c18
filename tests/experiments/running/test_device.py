"""The device of one process, and of each of several."""

import pytest
import torch

from puma_plugin.experiments.running.device import choose_device


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == choose_device("cpu", 2, 1) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_cannot_be_reached(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device is '{name}', which cannot be used \(.*\); give auto or cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1"])
def test_several_processes_cannot_share_a_device(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"device is '{name}', but several processes cannot share one; give auto, cuda"
    ):
        choose_device(name, 2, 0)


def test_a_machine_with_fewer_gpus_than_processes() -> None:
    count = torch.cuda.device_count()
    message = f"process {count} of this machine has no GPU, as there are {count}; start with --nproc-per-node="
    with pytest.raises(ValueError, match=f"{message}{max(count, 1)}, or give --device cpu"):
        choose_device("cuda", count + 1 if count else 2, count)
