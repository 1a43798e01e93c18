"""Hugging Face accelerate, which shares batches out itself, in two real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

from puma_plugin.samplers import MultiDistributionSampler

accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
labels = torch.stack([torch.arange(80) // 4, torch.arange(80) // 40], dim=1)
items = TensorDataset(torch.arange(80))
by_itself = DataLoader(items, batch_sampler=MultiDistributionSampler(labels, 8))
by_accelerate = DataLoader(items, batch_sampler=MultiDistributionSampler(labels, 8, rank=0, world_size=1))
expected = [batch[0].tolist() for batch in by_itself]
found = [batch[0].tolist() for batch in accelerator.prepare(by_accelerate)]
assert found == expected, (found, expected)
assert [len(batch) for batch in found] == [4] * 10
print(f"process {accelerator.process_index} of {accelerator.num_processes}: the same")
"""


def test_split_batches_are_the_slices_of_the_sampler(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert found.returncode == 0, found.stderr
    for rank in (0, 1):
        assert f"process {rank} of 2: the same" in found.stdout
