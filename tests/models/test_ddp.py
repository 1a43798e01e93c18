import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from puma_plugin import EmbeddingHead, UnifiedEmbedder, adapt


def test_two_processes_give_the_gradient_of_one(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    vit = adapt(make_vit(), adapter_dim=4, pool_size=3, prompt_length=2)
    randomize(vit)
    model = UnifiedEmbedder(vit, EmbeddingHead(192, 8)).train()
    images = torch.randn(8, 3, 32, 32)
    torch.save(model, tmp_path / "model.pt")
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, str(Path(__file__).parent / "ddp_worker.py"), str(tmp_path)]
    workers = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)

    first, second = (torch.load(tmp_path / f"gradients{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for adapter in vit.adapters():
        adapter.drop = 0.0
    (model(images).pow(3).sum(1).mean() + model.prompt_penalty(weight=1e-2)).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(first[False, 0.0], expected, rtol=1e-4, atol=1e-6)
    for drop in (0.0, 0.5):
        torch.testing.assert_close(first[True, drop], first[False, drop], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(first[False, 0.5]["trunk.blocks.0.adapter1.up"], expected["trunk.blocks.0.adapter1.up"])
