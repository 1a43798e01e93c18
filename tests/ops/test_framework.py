"""The operators inside torch's machinery: opcheck, torch.compile, torch.export, fake tensors, meta tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from puma_plugin.ops import frozen_mlp, match_prompts, packed_attention, stochastic_adapter

OPS = torch.ops.puma


class Small(nn.Module):
    """Both operators, as a model uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(16, 4))
        self.up = nn.Parameter(torch.randn(4, 16))
        self.keys, self.attention = nn.Parameter(torch.randn(3, 16)), nn.Parameter(torch.randn(3, 16))
        self.prompts = nn.Parameter(torch.randn(3, 2, 16))
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, tokens: Tensor, gate: Tensor) -> Tensor:
        prompt, weights = match_prompts(tokens.detach().mean(1), self.keys, self.attention, self.prompts)
        tokens = torch.cat([prompt, tokens], dim=1)
        normed = nn.functional.layer_norm(tokens, (16,))
        tokens = stochastic_adapter(tokens, normed, self.down, self.up, gate, self.scale)
        return stochastic_adapter(tokens, tokens, self.down, self.up).mean(1) + weights.sum()


@pytest.fixture
def small(device: str) -> tuple[Small, Tensor, Tensor]:
    gate = torch.tensor([2.0, 0.0, 2.0, 2.0, 0.0], device=device)
    return Small().to(device), torch.randn(5, 6, 16, device=device), gate


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck_adapter(device: str, dtype: torch.dtype, adapter_inputs: Callable[..., list[Tensor]]) -> None:
    """All samples are kept: rows of `hidden` behind the kept ones are undefined, so they cannot be compared."""
    inputs = adapter_inputs(3, 5, 8, 4, dtype)
    gate = torch.full((3,), 2.0, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    torch.library.opcheck(OPS.stochastic_adapter.default, (*inputs, gate, None, 0.1, True))
    detached = [t.detach() for t in inputs]
    torch.library.opcheck(OPS.stochastic_adapter.default, (*detached, None, None, 0.1, False))
    torch.library.opcheck(OPS.stochastic_adapter_inference.default, (*detached, gate, None, 0.1))
    _, hidden, prepared = OPS.stochastic_adapter.default(*detached, gate, None, 0.1, True)
    for need_tokens, need_weights in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(
            OPS.stochastic_adapter_backward.default,
            (torch.randn_like(detached[0]), *detached[1:], gate, hidden, prepared, 0.1, need_tokens, need_weights),
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_opcheck_prompts(device: str, dtype: torch.dtype, prompt_inputs: Callable[..., list[Tensor]]) -> None:
    inputs = prompt_inputs(3, 8, 4, 2, dtype)
    torch.library.opcheck(OPS.match_prompts.default, tuple(inputs))
    detached = [t.detach() for t in inputs]
    prompt, weights, inverse_norm = OPS.match_prompts.default(*detached)
    for grads in ((prompt, weights), (None, weights), (prompt, None)):
        for need_query in (True, False):
            torch.library.opcheck(
                OPS.match_prompts_backward.default, (*grads, *detached, weights, inverse_norm, need_query)
            )


def test_what_is_kept_for_the_backward_has_no_gradient_itself(
    adapter_inputs: Callable[..., list[Tensor]], prompt_inputs: Callable[..., list[Tensor]]
) -> None:
    out, hidden, prepared = OPS.stochastic_adapter(*adapter_inputs(3, 5, 8, 4, torch.float32), None, None, 0.1, True)
    prompt, weights, inverse_norm = OPS.match_prompts(*prompt_inputs(3, 8, 4, 2, torch.float32))
    assert all(tensor.requires_grad for tensor in (out, prompt, weights))
    assert not any(tensor.requires_grad for tensor in (hidden, prepared, inverse_norm))


def gradients(model: nn.Module, call: Callable[..., Tensor], tokens: Tensor, gate: Tensor) -> list[Tensor]:
    tokens = tokens.clone().requires_grad_()
    out = call(tokens, gate)
    leaves = [tokens, *model.parameters()]
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph_traces_forward_and_backward(small: tuple[Small, Tensor, Tensor], dynamic: bool) -> None:
    model, tokens, gate = small
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(gradients(model, compiled, tokens, gate), gradients(model, model, tokens, gate))
    torch.testing.assert_close(
        gradients(model, compiled, tokens[:3, :4], gate[:3]), gradients(model, model, tokens[:3, :4], gate[:3])
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(tokens, gate), model(tokens, gate))


def test_compile_fullgraph_with_inductor(small: tuple[Small, Tensor, Tensor]) -> None:
    model, tokens, gate = small
    compiled = torch.compile(model, fullgraph=True)
    expected = gradients(model, model, tokens, gate)
    torch.testing.assert_close(gradients(model, compiled, tokens, gate), expected, rtol=1e-4, atol=1e-4)


def test_compile_under_autocast(small: tuple[Small, Tensor, Tensor]) -> None:
    model, tokens, gate = small
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast(tokens.device.type, torch.bfloat16):
        torch.testing.assert_close(gradients(model, compiled, tokens, gate), gradients(model, model, tokens, gate))


def test_compiled_once_for_all_values_of_gates_and_scale(small: tuple[Small, Tensor, Tensor]) -> None:
    model, tokens, gate = small
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    counters.clear()
    for step in range(10):
        with torch.no_grad():
            model.scale.fill_(0.1 * step)
        compiled(tokens, gate.roll(step) * (step != 5)).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1


def test_export_keeps_the_operators(small: tuple[Small, Tensor, Tensor]) -> None:
    model, tokens, gate = small
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model.eval(), (tokens, gate), dynamic_shapes=({0: batch}, {0: batch}))
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {"puma.stochastic_adapter.default", "puma.match_prompts.default"} <= called
    for samples in (5, 3):
        got = exported.module()(tokens[:samples], gate[:samples])
        torch.testing.assert_close(got, model(tokens[:samples], gate[:samples]))


def test_fake_and_meta_tensors_have_the_real_shapes() -> None:
    inputs = [torch.zeros(s, device="meta", requires_grad=True) for s in ((2, 3, 8), (2, 3, 8), (8, 4), (4, 8))]
    out = stochastic_adapter(*inputs)
    assert (out.shape, out.device.type) == ((2, 3, 8), "meta")
    out.sum().backward()
    assert inputs[2].grad.shape == (8, 4)
    prompt, weights = match_prompts(*(torch.zeros(s, device="meta") for s in ((2, 8), (5, 8), (5, 8), (5, 3, 8))))
    assert (prompt.shape, weights.shape) == ((2, 3, 8), (2, 5))


@pytest.mark.parametrize(
    ("dtype", "width", "rank", "prepared"),
    [
        (torch.bfloat16, 384, 100, 2 * 384 * 128 * 2),
        (torch.bfloat16, 384, 128, 2 * 384 * 128 * 2),
        (torch.float32, 40, 64, 2 * 64 * 64 * 4),
        (torch.float32, 1 << 20, 1, 2 * (1 << 20) * 64 * 4),
        (torch.float64, 64, 16, None),
        (torch.float32, 6, 16, None),
        (torch.float32, 64, 129, None),
        (torch.float32, (1 << 20) + 4, 16, None),
    ],
    ids=str,
)
def test_fake_cuda_tensors_of_unknown_size(dtype: torch.dtype, width: int, rank: int, prepared: int | None) -> None:
    """Nothing asks how many samples or tokens there are: programs may be exported without knowing."""
    shapes = ShapeEnv()
    with FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True):
        samples, length = shapes.create_unbacked_symint(), shapes.create_unbacked_symint()
        torch._check(samples >= 0)
        torch._check(length >= 0)
        tokens = torch.empty(samples, length, width, device="cuda", dtype=dtype)
        down, up = (torch.empty(*shape, device="cuda", dtype=dtype) for shape in ((width, rank), (rank, width)))
        out, hidden, got = OPS.stochastic_adapter.default(tokens, tokens, down, up, None, None, 0.1, True)
    assert out.shape == tokens.shape
    assert hidden.shape[1] == rank
    if prepared is None:
        assert got.shape == (0,)
    else:
        assert str(got.shape[0] - prepared - 16) == str(2 * (16 * -(-samples // 4)))


def adapter_of(weight: Tensor) -> Tensor:
    tokens = torch.linspace(-1, 1, 24, device=weight.device).view(1, 3, 8)
    return stochastic_adapter(tokens, tokens, weight, weight.mT)


def prompt_of(weight: Tensor) -> Tensor:
    """``weight`` (8, 4) as the transposed keys, logits and prompts of a pool of 4."""
    query = torch.linspace(-1, 1, 16, device=weight.device).view(2, 8)
    return match_prompts(query, weight.mT, weight.mT, weight.mT[:, None])[0]


@pytest.mark.parametrize("operator", [adapter_of, prompt_of])
def test_functorch_differentiates_what_stands_behind(device: str, operator: Callable[[Tensor], Tensor]) -> None:
    """As the gradient of a head: the operator's own weights merely require one."""
    weight, head = torch.randn(8, 4, device=device, requires_grad=True), torch.randn(8, device=device)
    found = torch.func.grad(lambda h: (operator(weight) @ h).sum())(head)
    torch.testing.assert_close(found, operator(weight).flatten(0, -2).sum(dim=0))


@pytest.mark.parametrize("operator", [adapter_of, prompt_of])
def test_functorch_maps_but_does_not_differentiate(device: str, operator: Callable[[Tensor], Tensor]) -> None:
    weights = torch.randn(5, 8, 4, device=device)
    mapped = torch.func.vmap(operator)(weights)
    torch.testing.assert_close(mapped, torch.stack([operator(weight) for weight in weights]))
    with pytest.raises(NotImplementedError, match=r"cannot be differentiated by torch.func; use puma_plugin.ops.ref"):
        torch.func.grad(lambda weight: operator(weight).sum())(weights[0])
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivative; use puma_plugin\.ops\.reference"):
        torch.func.jvp(operator, (weights[0],), (weights[1],))


@pytest.mark.parametrize("operator", [adapter_of, prompt_of])
def test_eager_code_goes_past_the_autograd_wrapper(device: str, operator: Callable[[Tensor], Tensor]) -> None:
    weight = torch.randn(8, 4, device=device, requires_grad=True)
    node = operator(weight).grad_fn
    while node is not None and not type(node).__name__.startswith("_"):  # views of the result come first
        node = node.next_functions[0][0]
    assert type(node).__name__ in ("_StochasticAdapterBackward", "_MatchPromptsBackward")
    assert operator(weight.detach()).grad_fn is None
    with torch.no_grad():
        assert not operator(weight).requires_grad


def mlp_of(weight: Tensor) -> Tensor:
    eye = torch.eye(16, device=weight.device)
    return frozen_mlp(weight.view(1, 2, 16).expand(512, 2, 16), eye, None, eye, None)


def attention_of(weight: Tensor) -> Tensor:
    return packed_attention(weight.view(1, 2, 1, 1, 16).expand(1, 2, 3, 1, 16))


class Constant(torch.autograd.Function):
    """Hands its input on and says that no gradient goes back."""

    @staticmethod
    def forward(ctx, input: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return input.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:  # type: ignore[no-untyped-def]
        return None


@pytest.mark.parametrize("operator", [adapter_of, prompt_of, mlp_of, attention_of])
def test_where_no_gradient_comes_in_none_goes_out(device: str, operator: Callable[[Tensor], Tensor]) -> None:
    weight = torch.randn(8, 4, device=device, requires_grad=True)
    Constant.apply(operator(weight)).sum().backward()
    assert weight.grad is None
