from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from puma_plugin import adapt, load_adapter, save_adapter

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SMALL = {"adapter_dim": 16, "pool_size": 3, "prompt_length": 2}


def test_same_output_and_file_as_on_the_cpu(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    vit = adapt(make_vit().cuda(), **SMALL)
    randomize(vit)
    images = torch.randn(4, 3, 32, 32)
    on_cuda = vit(images.cuda()).cpu()
    save_adapter(vit, tmp_path / "a.safetensors")
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


def _gradients(vit: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    vit.zero_grad(set_to_none=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = vit(images).float().square().mean()
    loss.backward()
    return [parameter.grad for parameter in vit.parameters() if parameter.grad is not None]


def _captured(vit: nn.Module, images: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """A training step's forward and backward as a CUDA graph, and the gradients that its replays write."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            _gradients(vit, images)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = _gradients(vit, images)
    return graph, gradients


def test_a_training_step_in_a_cuda_graph(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None]
) -> None:
    vit = adapt(make_vit().cuda(), **SMALL, drop=0.0).train()
    randomize(vit)
    images = torch.randn(8, 3, 32, 32, device="cuda")
    graph, captured = _captured(vit, images)
    images.copy_(torch.randn(8, 3, 32, 32))
    graph.replay()
    got = [gradient.clone() for gradient in captured]
    torch.testing.assert_close(got, _gradients(vit, images), atol=1e-3, rtol=2e-2)


def test_each_replay_of_a_cuda_graph_draws_its_own_gates(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None]
) -> None:
    vit = adapt(make_vit().cuda(), **SMALL, drop=0.5).train()
    randomize(vit)
    images = torch.randn(16, 3, 32, 32, device="cuda")  # kept: a graph reads its inputs where they were
    with sdpa_kernel(SDPBackend.MATH):  # the other ones' backwards may add up in another order each time
        graph, captured = _captured(vit, images)
    replays = []
    for seed in (1, 2, 1):
        torch.cuda.manual_seed(seed)
        graph.replay()
        replays.append(torch.cat([gradient.flatten().clone() for gradient in captured]))
    first, other, again = replays
    assert torch.equal(again, first)
    assert (other - first).norm() > 0.1 * first.norm()


def test_compiled_under_autocast_without_graph_breaks(
    make_vit: Callable[..., nn.Module], randomize: Callable[[nn.Module], None]
) -> None:
    vit = adapt(make_vit().cuda(), **SMALL, drop=0.0).train()
    randomize(vit)
    images = torch.randn(8, 3, 32, 32, device="cuda")
    want = [gradient.clone() for gradient in _gradients(vit, images)]
    torch._dynamo.reset()
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    vit.zero_grad(set_to_none=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = compiled(images).float().square().mean()
    loss.backward()
    got = [parameter.grad for parameter in vit.parameters() if parameter.grad is not None]
    torch.testing.assert_close(got, want, atol=1e-3, rtol=2e-2)
