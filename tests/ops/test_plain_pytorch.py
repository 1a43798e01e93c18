"""`ops.plain_pytorch`: models and operators by torch's own operators, for what has to see into them."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from puma_plugin import adapt, ops
from puma_plugin.ops import loader


@pytest.fixture
def inputs(device: str) -> list[Tensor]:
    torch.manual_seed(0)
    sizes = ((2, 3, 8), (2, 3, 8), (8, 4), (4, 8))
    return [torch.randn(size, dtype=torch.float64, device=device, requires_grad=True) for size in sizes]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small adapted ViT whose adapters and prompts do something."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    adapted = adapt(timm.create_model("test_vit", num_classes=0, img_size=64, dynamic_img_size=False)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return adapted


class Wrapped(nn.Module):
    """A function as a module, as torch.export wants it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def operators_of(program: torch.export.ExportedProgram) -> set[str]:
    """Namespaces of the operators that are called."""
    targets = [node.target for node in program.graph.nodes]
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}


def test_the_same_result_without_a_warning_also_where_kernels_are_demanded(
    inputs: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUMA_STRICT", "1")
    gate = torch.tensor([0.0, 2.0], device=inputs[0].device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ops.plain_pytorch():
            plain = ops.stochastic_adapter(*inputs, gate)
    assert "Adapter" not in plain.grad_fn.name()
    compiled = ops.stochastic_adapter(*inputs, gate)
    assert "Adapter" in compiled.grad_fn.name()
    torch.testing.assert_close(plain, compiled)


def test_kernels_come_back_also_after_an_error_and_from_inside(inputs: list[Tensor]) -> None:
    before = loader.KERNEL_DEVICES
    with pytest.raises(ZeroDivisionError), ops.plain_pytorch(), ops.plain_pytorch():
        raise ZeroDivisionError
    assert before == loader.KERNEL_DEVICES
    with ops.plain_pytorch():
        with ops.plain_pytorch():
            pass
        assert not loader.KERNEL_DEVICES


def test_they_come_back_when_the_last_thread_leaves() -> None:
    before = loader.KERNEL_DEVICES
    first, second = ops.plain_pytorch(), ops.plain_pytorch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not loader.KERNEL_DEVICES
    second.__exit__(None, None, None)
    assert before == loader.KERNEL_DEVICES


def test_second_derivatives_and_forward_mode(inputs: list[Tensor]) -> None:
    def adapter(*tensors: Tensor) -> Tensor:
        return ops.stochastic_adapter(*tensors, scale=0.5)

    with ops.plain_pytorch():
        assert torch.autograd.gradgradcheck(adapter, inputs)
        tangents = tuple(torch.ones_like(tensor) for tensor in inputs)
        _, along = torch.func.jvp(adapter, tuple(inputs), tangents)
    step = 1e-6
    moved = [tensor + step * tangent for tensor, tangent in zip(inputs, tangents, strict=True)]
    torch.testing.assert_close(along, (adapter(*moved) - adapter(*inputs)) / step, rtol=1e-4, atol=1e-4)


def test_second_derivatives_and_forward_mode_of_a_whole_model(model: nn.Module) -> None:
    images, direction = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    with ops.plain_pytorch(), sdpa_kernel(SDPBackend.MATH):
        image = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(image).square().sum(), image, create_graph=True)
        (curvature,) = torch.autograd.grad((grad * direction).sum(), image)
        _, along = torch.func.jvp(lambda x: model(x).square().sum(), (images,), (direction,))
    assert curvature.isfinite().all()
    assert curvature.abs().max() > 0
    torch.testing.assert_close(along, (grad * direction).sum())


def test_exported_models_hold_torchs_operators_alone(model: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    assert "puma" in operators_of(torch.export.export(model, (images,)))
    with ops.plain_pytorch():
        program = torch.export.export(model, (images,))
    assert operators_of(program) == {"aten"}
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)


def test_traced_models_hold_torchs_operators_alone(model: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    with ops.plain_pytorch(), torch.no_grad():
        traced = torch.jit.trace(model, images)
    assert "puma::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(images), model(images), rtol=1e-4, atol=1e-5)


def test_compiled_code_is_compiled_anew(inputs: list[Tensor]) -> None:
    seen: list[set[str]] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda *tensors: ops.stochastic_adapter(*tensors), backend=backend, fullgraph=True)
    tensors = [tensor.detach() for tensor in inputs]
    expected = compiled(*tensors)
    with ops.plain_pytorch():
        torch.testing.assert_close(compiled(*tensors), expected)
        with ops.plain_pytorch():
            compiled(*tensors)
    compiled(*tensors)  # both graphs are kept
    assert [any("stochastic_adapter" in target for target in targets) for targets in seen] == [True, False]


def test_inside_compiled_code(inputs: list[Tensor]) -> None:
    def plain(*tensors: Tensor) -> Tensor:
        with ops.plain_pytorch():
            return ops.stochastic_adapter(*tensors)

    torch._dynamo.reset()
    tensors = [tensor.detach() for tensor in inputs]
    compiled = torch.compile(plain, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), ops.stochastic_adapter(*tensors))
    assert "puma" not in operators_of(torch.export.export(Wrapped(plain), tuple(tensors), strict=True))
    assert loader.KERNEL_DEVICES


def test_onnx_runs_the_whole_model_for_any_batch(model: nn.Module, tmp_path) -> None:  # type: ignore[no-untyped-def]
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = str(tmp_path / "model.onnx")
    with ops.plain_pytorch():
        batch = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (torch.randn(2, 3, 64, 64),), path, dynamo=True, dynamic_shapes=batch, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 64, 64)
    (result,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(images).detach(), rtol=1e-4, atol=1e-4)
