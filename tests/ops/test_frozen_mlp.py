"""The frozen MLP's kernels against the formula in float64, and where torch's own operators run instead."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from puma_plugin.ops import frozen_mlp, loader, plain_pytorch
from puma_plugin.ops.frozen_mlp import FEWEST_ROWS, serves

Parameters = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
# Rows that are no multiple of a tile's, widths that end within a panel, another output than input.
SHAPES = [(512, 16, 16, 16), (513, 48, 112, 80), (600, 384, 1536, 384), (549, 64, 1040, 32)]

needs_kernel = pytest.mark.skipif(not serves(16, 16, 16), reason="no kernel here")


def draw(inputs: int, hidden: int, outputs: int, bias: bool = True) -> Parameters:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    fc1, fc2 = normal(hidden, inputs) / inputs**0.5, normal(outputs, hidden) / hidden**0.5
    return fc1, normal(hidden) if bias else None, fc2, normal(outputs) if bias else None


def by_hand(input: Tensor, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None) -> Tensor:
    before = input @ fc1.T + (0 if bias1 is None else bias1)
    after = before * (1 + torch.erf(before / 2**0.5)) / 2
    return after @ fc2.T + (0 if bias2 is None else bias2)


def with_gradient(function: Callable[..., Tensor], input: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    leaf = input.detach().clone().requires_grad_()
    output = function(leaf, *parameters)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return output.detach(), torch.autograd.grad((output * weights).sum(), leaf)[0]


def in_double(parameters: Parameters) -> Parameters:
    fc1, bias1, fc2, bias2 = parameters
    return (
        fc1.double(),
        None if bias1 is None else bias1.double(),
        fc2.double(),
        None if bias2 is None else bias2.double(),
    )


def runs_kernel(function: Callable[[], Tensor]) -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return any(event.key == "puma::frozen_mlp" for event in profile.key_averages())


@needs_kernel
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape: tuple[int, int, int, int], bias: bool) -> None:
    rows, *widths = shape
    input, parameters = torch.randn(rows, widths[0]) * 3, draw(*widths, bias)
    assert runs_kernel(lambda: frozen_mlp(input, *parameters))
    found = with_gradient(frozen_mlp, input, parameters)
    expected = with_gradient(by_hand, input.double(), in_double(parameters))
    for mine, exact in zip(found, expected, strict=True):
        assert (mine - exact).abs().max() <= 2e-6 * exact.abs().max()
    with torch.no_grad():
        assert torch.equal(frozen_mlp(input, *parameters), found[0])


@needs_kernel
def test_the_slope_is_exact_wherever_gelu_has_one() -> None:
    """Width 16, weights that only hand through: the gradient is GELU's slope itself."""
    steps = torch.linspace(-12, 12, 16 * FEWEST_ROWS)
    one = torch.eye(16)
    _, slope = with_gradient(frozen_mlp, steps.view(-1, 16), (one, None, one, None))
    weights = torch.linspace(-1, 1, steps.numel()).view(-1, 16)
    x = steps.double().view(-1, 16)
    exact = (1 + torch.erf(x / 2**0.5)) / 2 + x * torch.exp(-(x**2) / 2) / (2 * torch.pi) ** 0.5
    assert (slope - weights * exact).abs().max() < 4e-7  # two units of the last of 24 bits, and the sum's rounding
    value = frozen_mlp(steps.view(-1, 16), one, None, one, None)
    assert (value - torch.nn.functional.gelu(x)).abs().max() < 2e-6


@needs_kernel
def test_any_leading_shape_and_views() -> None:
    parameters = draw(32, 64, 32)
    input = torch.randn(32, 3, 200).transpose(0, 2)  # (200, 3, 32), not contiguous
    found = with_gradient(frozen_mlp, input, parameters)
    expected = with_gradient(frozen_mlp, input.reshape(-1, 32), parameters)
    assert found[0].shape == input.shape
    assert torch.equal(found[0].view(-1, 32), expected[0])
    assert torch.equal(found[1].reshape(-1, 32), expected[1])
    turned = (parameters[0].T.contiguous().T, parameters[1], parameters[2].T.contiguous().T, parameters[3])
    assert torch.equal(frozen_mlp(input, *turned), found[0])
    spread = torch.zeros(64, 2)
    spread[:, 0] = parameters[1]
    assert torch.equal(frozen_mlp(input, parameters[0], spread[:, 0], *parameters[2:]), found[0])


@needs_kernel
@pytest.mark.parametrize("dimensions", [1, 2, 5, 6])
def test_from_one_dimension_to_more_than_the_kernel_takes(dimensions: int) -> None:
    rows = FEWEST_ROWS if dimensions > 1 else 1
    parameters, input = draw(16, 32, 16), torch.randn(rows, 16)
    shaped = input.view([16] if dimensions == 1 else [1] * (dimensions - 2) + [rows, 16])
    assert runs_kernel(lambda: frozen_mlp(shaped, *parameters)) is (dimensions in (2, 5))
    expected = by_hand(shaped.double(), *in_double(parameters))
    torch.testing.assert_close(frozen_mlp(shaped, *parameters).double(), expected, rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_stay_in_their_row(value: float) -> None:
    parameters = draw(16, 32, 16)
    input = torch.randn(FEWEST_ROWS, 16)
    clean = with_gradient(frozen_mlp, input, parameters)
    input[7, 3] = value
    found = with_gradient(frozen_mlp, input, parameters)
    others = torch.arange(FEWEST_ROWS) != 7
    assert all(torch.equal(mine[others], before[others]) for mine, before in zip(found, clean, strict=True))
    assert not found[0][7].isfinite().any()
    if value != value:
        assert found[1][7].isnan().all()


@needs_kernel
def test_keeps_three_bytes_for_each_hidden_element() -> None:
    parameters = draw(64, 1024, 64)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda t: t):
        frozen_mlp(torch.randn(1400, 64, requires_grad=True), *parameters)
    own = [size for size in sizes if size not in (parameters[0].nbytes, parameters[2].nbytes)]
    assert len(own) == 1
    assert 3 * 1400 * 1024 <= own[0] <= 3 * 1414 * 1024


@needs_kernel
def test_the_same_whatever_the_number_of_threads() -> None:
    parameters, input = draw(48, 96, 48), torch.randn(1000, 48)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(with_gradient(frozen_mlp, input, parameters))
        torch.set_num_threads(1)  # slopes made by several threads, read by one
        leaf = input.clone().requires_grad_()
        torch.set_num_threads(3)
        output = frozen_mlp(leaf, *parameters)
        torch.set_num_threads(1)
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        found.append((output.detach(), torch.autograd.grad((output * weights).sum(), leaf)[0]))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert torch.equal(other[1], found[0][1])


@needs_kernel
def test_the_result_is_no_view() -> None:
    parameters, input = draw(16, 16, 16), torch.randn(2, FEWEST_ROWS, 16)
    with torch.no_grad():
        output = frozen_mlp(input, *parameters)
    assert output._base is None
    output += torch.nn.Parameter(torch.ones(16))  # as torch's own result allows
    assert output.requires_grad


@needs_kernel
def test_weights_changed_before_the_backward_are_noticed() -> None:
    fc1, bias1, fc2, bias2 = draw(16, 32, 16)
    output = frozen_mlp(torch.randn(FEWEST_ROWS, 16, requires_grad=True), fc1, bias1, fc2, bias2)
    fc2.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@needs_kernel
def test_operators_refuse_what_they_do_not_serve() -> None:
    fc1, bias1, fc2, bias2 = draw(16, 32, 16)
    input, operator = torch.randn(40, 16), torch.ops.puma.frozen_mlp
    output, slopes = operator(input, fc1, bias1, fc2, bias2, True)
    for arguments, message in [
        ((input.double(), fc1, bias1, fc2, bias2), "float32 was expected"),
        ((input, torch.empty(32, 16, 0), bias1, fc2, bias2), "fc1 must be"),
        ((input, fc1[:24], bias1, fc2, bias2), "fc1 must be"),
        ((input[:, :8], fc1, bias1, fc2, bias2), "must be 16 wide"),
        ((input, fc1, bias1[:8], fc2, bias2), "a bias must be float32 with 32 elements"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments, True)
    backward = torch.ops.puma.frozen_mlp_backward
    for wrong in (slopes[1:], slopes.view(torch.int8)):
        with pytest.raises(RuntimeError, match="slopes are not those"):
            backward(output, wrong, fc1, fc2)
    spread = torch.stack([slopes, slopes], dim=-1)[..., 0]
    assert torch.equal(backward(output, spread, fc1, fc2), backward(output, slopes, fc1, fc2))


@needs_kernel
@pytest.mark.parametrize("square", [False, True])
def test_can_be_differentiated_once(square: bool) -> None:
    """A second time is refused also where the gradient that comes in, of a plain sum, cannot be differentiated."""
    leaf = torch.randn(FEWEST_ROWS, 16, requires_grad=True)
    out = frozen_mlp(leaf, *draw(16, 16, 16))
    (grad,) = torch.autograd.grad((out.square() if square else out).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"frozen_mlp can be differentiated once.*plain_pytorch"):
        grad.square().sum().backward()


@pytest.mark.parametrize(
    ("rows", "widths", "dtype"),
    [
        (FEWEST_ROWS - 1, (16, 16, 16), torch.float32),
        (FEWEST_ROWS, (24, 16, 16), torch.float32),
        (FEWEST_ROWS, (16, 24, 16), torch.float32),
        (FEWEST_ROWS, (16, 16, 24), torch.float32),
        (FEWEST_ROWS, (16, 16, 16), torch.float64),
        (FEWEST_ROWS, (16, 16, 16), torch.bfloat16),
        (0, (16, 16, 16), torch.float32),
    ],
)
def test_elsewhere_torch_computes(rows: int, widths: tuple[int, int, int], dtype: torch.dtype) -> None:
    fc1, bias1, fc2, bias2 = (tensor.to(dtype) for tensor in draw(*widths) if tensor is not None)
    input = torch.randn(rows, widths[0], dtype=dtype)
    assert not runs_kernel(lambda: frozen_mlp(input, fc1, bias1, fc2, bias2))
    linear = torch.nn.functional.linear
    expected = linear(torch.nn.functional.gelu(linear(input, fc1, bias1)), fc2, bias2)
    assert torch.equal(frozen_mlp(input, fc1, bias1, fc2, bias2), expected)


def test_what_looks_in_sees_torchs_operators() -> None:
    parameters, input = draw(16, 32, 16), torch.randn(FEWEST_ROWS, 16)
    with FlopCounterMode(display=False) as counter:
        frozen_mlp(input, *parameters)
    assert counter.get_total_flops() == 2 * FEWEST_ROWS * (16 * 32 + 32 * 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen_mlp(input, *parameters).dtype is torch.bfloat16
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(input, torch.ones_like(input))
        assert torch.autograd.forward_ad.unpack_dual(frozen_mlp(dual, *parameters)).tangent is not None
    by_sample = torch.vmap(lambda x: frozen_mlp(x, *parameters))(input.view(4, -1, 16))
    torch.testing.assert_close(by_sample.view(-1, 16), frozen_mlp(input, *parameters))
    assert frozen_mlp(input.to("meta"), *(p.to("meta") for p in parameters if p is not None)).device.type == "meta"


class Named(Tensor):
    """A tensor that may mean more than its numbers."""


def test_plain_pytorch_and_other_kinds_of_tensors_run_no_kernel() -> None:
    parameters, input = draw(16, 32, 16), torch.randn(FEWEST_ROWS, 16)
    with plain_pytorch():
        assert not runs_kernel(lambda: frozen_mlp(input, *parameters))
    assert not runs_kernel(lambda: frozen_mlp(input.as_subclass(Named), *parameters))
    assert isinstance(frozen_mlp(input.as_subclass(Named), *parameters), Named)


def test_products_with_less_than_float32_are_torchs() -> None:
    parameters, input = draw(16, 32, 16), torch.randn(FEWEST_ROWS, 16)
    try:
        torch.set_float32_matmul_precision("medium")
        assert not runs_kernel(lambda: frozen_mlp(input, *parameters))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_traced_code_holds_torchs_operators() -> None:
    parameters, input = draw(16, 32, 16), torch.randn(FEWEST_ROWS, 16)
    graph = make_fx(lambda x: frozen_mlp(x, *parameters), pre_dispatch=True)(input).code
    assert "gelu" in graph
    assert "puma" not in graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and of checks of shapes
        traced = torch.jit.trace(lambda x: frozen_mlp(x, *parameters), input)
    assert "puma::" not in str(traced.inlined_graph)
    sparse = parameters[0].to_sparse_csr()
    torch.testing.assert_close(frozen_mlp(input, sparse, *parameters[1:]), frozen_mlp(input, *parameters))


@needs_kernel
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_runs_the_kernel(dynamic: bool, graphs: Any) -> None:
    parameters = draw(16, 48, 32)
    compiled = torch.compile(frozen_mlp, fullgraph=True, dynamic=dynamic, backend=graphs.backend)
    for rows in (FEWEST_ROWS, FEWEST_ROWS + 7):
        input = torch.randn(rows, 16)
        found, expected = (with_gradient(function, input, parameters) for function in (compiled, frozen_mlp))
        assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))
        with torch.no_grad():
            assert torch.equal(compiled(input, *parameters), expected[0])
    assert graphs.operators == {"puma.frozen_mlp.default", "puma.frozen_mlp_backward.default"}
    graphs.operators.clear()
    few = torch.randn(3, 16)
    torch.testing.assert_close(compiled(few, *parameters), frozen_mlp(few, *parameters))
    assert bool(graphs.operators) == dynamic  # then it is code for any number of rows


def promise_a_range(input: Tensor) -> None:
    torch._dynamo.mark_dynamic(input, 0, min=2, max=64)


@needs_kernel
@pytest.mark.parametrize("mark", [promise_a_range, lambda input: torch._dynamo.decorators.mark_unbacked(input, 0)])
def test_code_for_any_number_of_rows_is_not_bound_to_some(mark: Callable[[Tensor], None], graphs: Any) -> None:
    parameters = draw(16, 48, 32)
    compiled = torch.compile(frozen_mlp, fullgraph=True, backend=graphs.backend)
    for samples in (64, 2):
        input = torch.randn(samples, 16, 16)
        mark(input)
        torch.testing.assert_close(compiled(input, *parameters), frozen_mlp(input, *parameters))
    assert graphs.operators == {"puma.frozen_mlp.default"}


@needs_kernel
def test_compiled_code_asks_how_exact_float32_is_when_it_is_compiled(graphs: Any) -> None:
    parameters, input = draw(16, 32, 16), torch.randn(FEWEST_ROWS, 16)
    try:
        torch.set_float32_matmul_precision("medium")
        torch.compile(lambda x: frozen_mlp(x, *parameters), fullgraph=True, backend=graphs.backend)(input)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not graphs.operators


@pytest.mark.parametrize("strict", [False, True])
def test_exported_code_holds_torchs_operators(strict: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor) -> Tensor:
            return frozen_mlp(x, fc1, bias1, fc2, bias2)

    program = torch.export.export(Module(), (torch.randn(FEWEST_ROWS, 16), *draw(16, 32, 16)), strict=strict)
    assert "puma" not in str(program.graph)
    assert "gelu" in str(program.graph)


@needs_kernel
def test_opcheck() -> None:
    input = torch.randn(3, 171, 16)
    fc1, bias1, fc2, bias2 = draw(16, 48, 32)
    operators = torch.ops.puma
    torch.library.opcheck(operators.frozen_mlp.default, (input.requires_grad_(), fc1, bias1, fc2, bias2, True))
    torch.library.opcheck(operators.frozen_mlp.default, (input.detach(), fc1, None, fc2, None, False))
    output, slopes = operators.frozen_mlp(input.detach(), fc1, bias1, fc2, bias2, True)
    torch.library.opcheck(operators.frozen_mlp_backward.default, (torch.randn_like(output), slopes, fc1, fc2))


@needs_kernel
def test_the_operator_by_itself_is_differentiated_once() -> None:
    leaf = torch.randn(FEWEST_ROWS, 16, requires_grad=True)
    output, _ = torch.ops.puma.frozen_mlp(leaf, *draw(16, 16, 16), True)
    (grad,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"frozen_mlp can be differentiated once.*plain_pytorch"):
        grad.square().sum().backward()


@needs_kernel
def test_where_no_gradient_comes_none_goes_on(without_gradient: Callable[[Tensor], Tensor]) -> None:
    leaf, parameters = torch.randn(FEWEST_ROWS, 16, requires_grad=True), draw(16, 16, 16)
    without_gradient(frozen_mlp(leaf, *parameters)).backward()
    without_gradient(torch.ops.puma.frozen_mlp(leaf, *parameters, True)[0]).backward()
    assert leaf.grad is None


@needs_kernel
def test_sizes_of_the_slopes_are_known_before_they_are_computed() -> None:
    operator = torch.ops.puma.frozen_mlp
    for rows in range(1, 40):
        arguments = [torch.randn(rows, 16), *draw(16, 16 * rows, 16)]
        on_meta = [tensor.to("meta") for tensor in arguments if tensor is not None]
        assert operator(*on_meta, True)[1].shape == operator(*arguments, True)[1].shape


def test_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = loader.CPU_MODULE
    assert serves(16, 48, 32) is (module.cpu_capability() != "default")
    assert not any(serves(*widths) for widths in ((0, 16, 16), (16, 0, 16), (16, 16, 0), (16, 24, 16)))
    # What is said where there are no kernels.
    monkeypatch.setitem(serves.__globals__, "_LIMITS", {"width_multiple": 0})
    assert not serves(16, 48, 32)


def test_errors_name_the_argument() -> None:
    fc1, bias1, fc2, bias2 = draw(16, 32, 16)
    input = torch.randn(4, 16)
    with pytest.raises(ValueError, match=r"fc1 must have shape .* got fc1 \(32, 16\) and input \(4, 8\)"):
        frozen_mlp(input[:, :8], fc1, bias1, fc2, bias2)
    with pytest.raises(ValueError, match=r"got fc1 \(32, 16, 1\) and input \(4, 16\)"):
        frozen_mlp(input, fc1[..., None], bias1, fc2, bias2)
    with pytest.raises(ValueError, match=r"got fc1 \(32, 16\) and input \(\)"):
        frozen_mlp(torch.tensor(1.0), fc1, bias1, fc2, bias2)
    with pytest.raises(ValueError, match=r"fc2 must have shape \(out, hidden\) with hidden = 32, got \(32, 16\)"):
        frozen_mlp(input, fc1, bias1, fc1, bias2)
    with pytest.raises(ValueError, match=r"fc2 must have shape .* got \(16, 32, 1\)"):
        frozen_mlp(input, fc1, bias1, fc2[..., None], bias2)
    with pytest.raises(ValueError, match=r"bias1 must have shape \(32,\), got \(16,\)"):
        frozen_mlp(input, fc1, bias2, fc2, bias2)
    with pytest.raises(ValueError, match=r"bias2 must have shape \(16,\), got \(32,\)"):
        frozen_mlp(input, fc1, bias1, fc2, bias1)
    arguments = {"fc1": fc1, "bias1": bias1, "fc2": fc2, "bias2": bias2}
    for name, value in arguments.items():
        with pytest.raises(TypeError, match=f"{name} takes no gradient here"):
            frozen_mlp(input, **(arguments | {name: value.clone().requires_grad_()}))
