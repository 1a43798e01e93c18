from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from puma_plugin import adapt, load_adapter

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SMALL = {"adapter_dim": 16, "pool_size": 3, "prompt_length": 2}


def test_same_output_and_file_as_on_the_cpu(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    vit = adapt(make_vit().cuda(), **SMALL)
    randomize(vit)
    images = torch.randn(4, 3, 32, 32)
    on_cuda = vit(images.cuda()).cpu()
    vit.save_adapter(tmp_path / "a.safetensors")
    torch.testing.assert_close(vit.cpu()(images), on_cuda, atol=1e-3, rtol=1e-3)
    bare = make_vit()
    bare.load_state_dict({name: tensor for name, tensor in vit.state_dict().items() if name in bare.state_dict()})
    torch.testing.assert_close(load_adapter(bare, tmp_path / "a.safetensors")(images), vit(images))


def test_checkpointing_with_own_gates_under_autocast(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None]
) -> None:
    vit = adapt(make_vit().cuda(), **SMALL).train()
    randomize(vit)
    images = torch.randn(8, 3, 32, 32, device="cuda")
    gradients = []
    for enable in (False, True):
        vit.set_grad_checkpointing(enable)
        vit.zero_grad()
        vit.gate_generator = torch.Generator().manual_seed(8)
        state = torch.cuda.get_rng_state()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = vit(images).float().square().mean()
        assert torch.equal(state, torch.cuda.get_rng_state())
        torch.rand(5, device="cuda")
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in vit.trainable_parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=2e-2)
