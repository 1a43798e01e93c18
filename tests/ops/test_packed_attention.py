"""Packed attention against its formula, written out here in float64, and against torch where torch runs."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from puma_plugin.ops import loader, packed_attention
from puma_plugin.ops.packed_attention import serves

TOLERANCE = 2e-6
# Half a last place: the operator computes in float32 and rounds once.
HALF_PLACE = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}
TORCHS_TOLERANCE = 2e-2  # where torch computes bfloat16, which rounds on the way
DTYPES = [torch.float32, torch.bfloat16]


def by_hand(qkv: Tensor, scale: float | None = None) -> Tensor:
    query, key, value = qkv.double().permute(2, 0, 3, 1, 4)
    scores = query @ key.mT * (qkv.shape[4] ** -0.5 if scale is None else scale)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return (weights @ value / weights.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)


def by_torch(qkv: Tensor, scale: float | None = None) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


needs_operator = pytest.mark.skipif(not serves(8, 16, torch.float32), reason="no kernels for this instruction set")


def allowed(dtype: torch.dtype, most: float, expected: Tensor, size: float) -> Tensor:
    """How far each element may be off, of a tensor whose largest is ``size``."""
    return most * size + HALF_PLACE[dtype] * expected.abs()


def check(qkv: Tensor, scale: float | None = None, most: float = TOLERANCE) -> None:
    leaf, exact = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    out, expected = packed_attention(leaf, scale), by_hand(exact, scale)
    grad = draw(*out.shape, dtype=qkv.dtype)
    assert out.dtype is qkv.dtype
    by_operator = serves(qkv.shape[1], qkv.shape[4], qkv.dtype)
    if qkv.dtype is torch.bfloat16 and not by_operator:
        most = TORCHS_TOLERANCE
    assert ((out - expected).abs() <= allowed(out.dtype, most, expected, float(expected.detach().abs().max()))).all()
    (found,) = torch.autograd.grad(out, leaf, grad)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    assert found.shape == qkv.shape
    if by_operator:
        assert out.is_contiguous()
        assert found.is_contiguous()
    # Each by itself: one of them may be much smaller than the others. With one key those of q and k are 0.
    least = float(wanted.abs().max()) * (1.0 if qkv.shape[1] == 1 else 1e-2)
    for part in range(3):
        wanted_part = wanted[:, :, part]
        size = max(float(wanted_part.abs().max()), least)
        assert ((found[:, :, part] - wanted_part).abs() <= allowed(found.dtype, most, wanted_part, size)).all()
    with torch.no_grad():
        assert torch.equal(packed_attention(leaf, scale), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("heads", [1, 6])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("tokens", [1, 5, 13, 14, 15, 16, 17, 33, 205])
def test_matches_the_formula(tokens: int, head_dim: int, heads: int, samples: int, dtype: torch.dtype) -> None:
    check(draw(samples, tokens, 3, heads, head_dim, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "head_dim"), [(700, 64), (1031, 16), (4096, 16)])
def test_queries_in_several_blocks(tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    check(draw(1, tokens, 3, 1, head_dim, dtype=dtype), most=TOLERANCE if tokens < 2000 else 2 * TOLERANCE)


@pytest.mark.parametrize("head_dim", [32, 24])  # with and without a kernel
@pytest.mark.parametrize("scale", [0.0, 0.5, -0.25, 1])
def test_scale(scale: float, head_dim: int) -> None:
    check(draw(2, 37, 3, 2, head_dim), scale)


def test_large_logits_do_not_overflow(error: Callable[[Tensor, Tensor], float]) -> None:
    # All near 1e4, and all near -1e4, where padded keys' zeros would be the largest.
    for sign in (1, -1):
        qkv = draw(2, 45, 3, 2, 64)
        qkv[:, :, 0] = sign * 40 + qkv[:, :, 0]
        qkv[:, :, 1] = 31 + qkv[:, :, 1]
        out = packed_attention(qkv)
        assert error(out, by_hand(qkv)) <= 1e-2  # a float32 of 1e4 is exact to 1e-3
        leaf = qkv.requires_grad_()
        (grad,) = torch.autograd.grad(packed_attention(leaf).sum(), leaf)
        assert grad.isfinite().all()


def test_weights_may_be_exactly_one() -> None:
    # Each query meets itself alone: all others' weights underflow to 0.
    qkv = draw(1, 16, 3, 1, 16)
    qkv[:, :, :2] = 1000 * torch.eye(16)[None, :, None, None, :]
    assert torch.equal(packed_attention(qkv), qkv[:, :, 2].flatten(2))


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_head(part: int, value: float, dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and not serves(29, 32, dtype):
        pytest.skip("torch's own products of bfloat16 may lose an infinity")
    qkv = draw(3, 29, 3, 2, 32, dtype=dtype)
    clean = qkv.clone().requires_grad_()
    qkv[1, 11, part, 1, 3] = value
    leaf = qkv.requires_grad_()
    out, expected = packed_attention(leaf), packed_attention(clean)
    grad = torch.ones_like(out)
    (found,), (wanted,) = torch.autograd.grad(out, leaf, grad), torch.autograd.grad(expected, clean, grad)
    hurt = out.unflatten(2, (2, 32))[1, :, 1]
    assert not hurt[11].isfinite().all() if part == 0 else not hurt.isfinite().all()
    if value is torch.nan and part < 2:  # in all that it is part of, and silently in nothing else
        assert hurt[11].isnan().all() if part == 0 else hurt.isnan().all()
        assert part == 1 or hurt[torch.arange(29) != 11].isfinite().all()
    for left, right in ((out.unflatten(2, (2, 32)), expected.unflatten(2, (2, 32))),):
        assert torch.equal(left[[0, 2]], right[[0, 2]])
        assert torch.equal(left[1, :, 0], right[1, :, 0])
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])
    assert torch.equal(found[1, :, :, 0], wanted[1, :, :, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_threads(dtype: torch.dtype, set_threads: Callable[[int], None]) -> None:
    leaf = draw(3, 41, 3, 3, 48, dtype=dtype).requires_grad_()
    results = []
    for threads in (1, 2, 4, 16):
        set_threads(threads)
        out = packed_attention(leaf)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaf)])
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_strided_qkv_and_grad() -> None:
    qkv = draw(3, 2, 23, 2, 32).transpose(1, 2)[:, :, [0, 1, 1]].transpose(0, 1)
    leaf = qkv.transpose(0, 1).detach().transpose(1, 3).contiguous().transpose(1, 3).requires_grad_()
    assert not leaf.is_contiguous()
    dense = leaf.detach().contiguous().requires_grad_()
    grad = draw(64, 23, 3).permute(2, 1, 0)
    out, expected = packed_attention(leaf), packed_attention(dense)
    assert torch.equal(out, expected)
    found, wanted = torch.autograd.grad(out, leaf, grad), torch.autograd.grad(expected, dense, grad.contiguous())
    assert torch.equal(found[0], wanted[0])
    # What a sum gives: strides of 0.
    found = torch.autograd.grad(packed_attention(leaf).sum(), leaf)
    wanted = torch.autograd.grad(packed_attention(dense), dense, torch.ones_like(expected))
    assert torch.equal(found[0], wanted[0])


def test_gradient_is_that_of_differences() -> None:
    leaf = draw(1, 9, 3, 2, 16).requires_grad_()
    weight, direction = draw(1, 9, 32), draw(1, 3, 9, 2, 16).transpose(1, 2)
    (grad,) = torch.autograd.grad((packed_attention(leaf) * weight).sum(), leaf)
    step = 1e-2

    def value(sign: int) -> Tensor:
        return (packed_attention(leaf.detach() + sign * step * direction) * weight).double().sum()

    difference = (value(1) - value(-1)) / (2 * step)
    torch.testing.assert_close((grad * direction).double().sum(), difference, rtol=2e-3, atol=2e-3)


@needs_operator
def test_keeps_qkv_and_one_number_per_query_and_head() -> None:
    leaf = draw(2, 33, 3, 4, 16).requires_grad_()
    qkv = leaf * 1
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed_attention(qkv)
    assert [tuple(tensor.shape) for tensor in kept] == [(2, 33, 3, 4, 16), (2, 4, 33)]
    assert kept[0].data_ptr() == qkv.data_ptr()
    query, key, _ = qkv.double().permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(kept[1].double(), (query @ key.mT / 4).logsumexp(-1), rtol=1e-6, atol=1e-6)


@needs_operator
def test_operator_runs_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("torch was called")

    monkeypatch.setitem(packed_attention.__globals__, "scaled_dot_product_attention", refuse)
    packed_attention(draw(1, 5, 3, 1, 16))
    packed_attention(torch.nn.Parameter(draw(1, 5, 3, 1, 16))).sum().backward()
    if serves(5, 16, torch.bfloat16):
        packed_attention(draw(1, 5, 3, 1, 16, dtype=torch.bfloat16).requires_grad_()).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            packed_attention(draw(1, 5, 3, 1, 16).requires_grad_()).sum().backward()
    with pytest.raises(AssertionError, match="torch was called"):
        packed_attention(draw(1, 5, 3, 1, 24))


def test_what_is_served() -> None:
    module: Any = loader.CPU_MODULE
    for dtype in DTYPES:
        here = serves(8, 16, dtype)
        without = ["default", "amx"] if dtype is torch.bfloat16 else ["default"]
        assert here == (module.cpu_capability() not in without)
        assert all(serves(n, d, dtype) == here for n in (1, 205, 4096) for d in (16, 64, 80, 128))
        assert not any(serves(*sizes, dtype) for sizes in ((0, 64), (4097, 64), (205, 24), (205, 144), (205, 8)))


def test_nothing_is_served_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serves.__globals__, "_LIMITS", {"most_tokens": 0})
    assert not serves(1, 16, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.bfloat16, (2, 21, 3, 2, 24)),
        (torch.float16, (2, 21, 3, 2, 64)),
        (torch.float64, (2, 21, 3, 2, 64)),
        (torch.float32, (2, 21, 3, 2, 24)),
        (torch.float32, (2, 21, 3, 2, 144)),
        (torch.float32, (2, 21, 3, 2, 1)),
        (torch.float32, (2, 0, 3, 2, 16)),
    ],
)
def test_everything_else_is_torchs(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    leaf = draw(*shape, dtype=dtype).requires_grad_()
    found, expected = packed_attention(leaf), by_torch(leaf)
    assert found.dtype is dtype
    assert torch.equal(found, expected)
    grad = torch.ones_like(expected)
    assert torch.equal(torch.autograd.grad(found, leaf, grad)[0], torch.autograd.grad(expected, leaf, grad)[0])


def test_no_samples() -> None:
    leaf = torch.zeros(0, 5, 3, 2, 16, requires_grad=True)
    out = packed_attention(leaf)
    assert out.shape == (0, 5, 32)
    out.sum().backward()
    assert leaf.grad is not None


def test_autocast_computes_in_its_type() -> None:
    leaf = draw(2, 21, 3, 2, 64).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = packed_attention(leaf)
    rounded = leaf.detach().bfloat16().requires_grad_()
    expected = packed_attention(rounded)
    assert torch.equal(found, expected)
    grad = draw(*expected.shape, dtype=torch.bfloat16)
    (found_grad,) = torch.autograd.grad(found, leaf, grad)
    (expected_grad,) = torch.autograd.grad(expected, rounded, grad)
    assert torch.equal(found_grad, expected_grad.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed_attention(rounded), expected)
        assert torch.equal(packed_attention(leaf.half()), by_torch(leaf.half()))
        assert torch.equal(packed_attention(leaf.double()), by_torch(leaf.double()))
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(packed_attention(leaf), by_torch(leaf))
        assert torch.equal(packed_attention(rounded), by_torch(rounded))


@needs_operator
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_code_runs_the_operator(dtype: torch.dtype, dynamic: bool, graphs: Any) -> None:
    compiled = torch.compile(packed_attention, backend=graphs.backend, fullgraph=True, dynamic=dynamic)
    for tokens in (21, 34):
        leaf = draw(2, tokens, 3, 2, 64, dtype=dtype).requires_grad_()
        found, expected = compiled(leaf), packed_attention(leaf)
        assert torch.equal(found, expected)
        grad = draw(*found.shape, dtype=dtype)
        assert torch.equal(torch.autograd.grad(found, leaf, grad)[0], torch.autograd.grad(expected, leaf, grad)[0])
        with torch.no_grad():
            assert torch.equal(compiled(leaf), expected)
    both = {"puma.packed_attention.default", "puma.packed_attention_backward.default"}
    assert graphs.operators == (both if serves(21, 64, dtype) else set())
    graphs.operators.clear()
    qkv = draw(2, 21, 3, 2, 24, dtype=dtype)
    torch.testing.assert_close(compiled(qkv), by_torch(qkv))
    assert not graphs.operators


@needs_operator
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    qkv = draw(2, 21, 3, 2, 32, dtype=dtype)
    operators = torch.ops.puma
    torch.library.opcheck(operators.packed_attention.default, (qkv.clone().requires_grad_(), 0.25))
    out, logsumexp = operators.packed_attention(qkv, 0.25)
    torch.library.opcheck(operators.packed_attention_backward.default, (torch.randn_like(out), qkv, logsumexp, 0.25))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_traced_code_is_torchs() -> None:
    qkv = draw(2, 21, 3, 2, 64)
    per_sample = torch.func.vmap(packed_attention)(qkv[:, None])
    torch.testing.assert_close(per_sample.squeeze(1), by_torch(qkv))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert packed_attention(qkv).shape == packed_attention(torch.empty_like(qkv)).shape == (2, 21, 128)
    assert packed_attention(qkv.to("meta")).shape == (2, 21, 128)
    with forward_ad.dual_level():
        torch.testing.assert_close(packed_attention(qkv), by_torch(qkv))
    by_compiled = torch.compile(torch.func.vmap(packed_attention), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(by_compiled(qkv[:, None]).squeeze(1), by_torch(qkv))

    class Module(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return packed_attention(qkv)

    exported = str(torch.export.export(Module(), (qkv,)).graph)
    assert "puma" not in exported
    assert "scaled_dot_product" in exported


def test_without_the_flash_backend_it_is_torchs() -> None:
    leaf = draw(1, 5, 3, 1, 16).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (grad,) = torch.autograd.grad(packed_attention(leaf).square().sum(), leaf, create_graph=True)
        grad.sum().backward()
    assert leaf.grad is not None


@needs_operator
@pytest.mark.parametrize("square", [False, True])
def test_second_derivatives_are_refused(square: bool) -> None:
    """Also where the gradient that comes in, of a plain sum, cannot be differentiated itself."""
    leaf = draw(1, 5, 3, 1, 16).requires_grad_()
    out = packed_attention(leaf)
    (grad,) = torch.autograd.grad((out.square() if square else out).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"packed_attention can be differentiated once.*plain_pytorch"):
        grad.square().sum().backward()


@needs_operator
def test_the_operator_by_itself_is_differentiated_once() -> None:
    leaf = draw(1, 5, 3, 1, 16).requires_grad_()
    out, _ = torch.ops.puma.packed_attention(leaf, 0.25)
    (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"packed_attention can be differentiated once.*plain_pytorch"):
        grad.square().sum().backward()


@needs_operator
def test_where_no_gradient_comes_none_goes_on(without_gradient: Callable[[Tensor], Tensor]) -> None:
    leaf = draw(1, 5, 3, 1, 16).requires_grad_()
    without_gradient(packed_attention(leaf)).backward()
    without_gradient(torch.ops.puma.packed_attention(leaf, 0.25)[0]).backward()
    assert leaf.grad is None


def test_errors_name_the_argument() -> None:
    four, six = (2, 5, 3, 16), (2, 5, 3, 1, 16, 1)
    for shape in ((2, 5, 48), (2, 5, 2, 1, 16), (2, 5, 3, 0, 16), (2, 5, 3, 1, 0), (5, 3, 1, 16), four, six):
        with pytest.raises(ValueError, match=rf"qkv must have shape \(B, N, 3, H, D\).* got {re.escape(str(shape))}"):
            packed_attention(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"qkv must be floating point, got torch\.int64"):
        packed_attention(torch.zeros(2, 5, 3, 1, 16, dtype=torch.int64))
    for scale in (torch.inf, torch.nan):
        with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
            packed_attention(draw(1, 5, 3, 1, 16), scale)
    for scale in ("1", True, torch.tensor(1.0)):
        with pytest.raises(TypeError, match=re.escape(f"scale must be a number or None, got {scale!r}")):
            packed_attention(draw(1, 5, 3, 1, 16), scale)  # type: ignore[arg-type]


@needs_operator
def test_operators_refuse_what_they_do_not_serve() -> None:
    qkv = draw(1, 5, 3, 1, 16)
    out, logsumexp = torch.ops.puma.packed_attention(qkv, 0.25)
    for wrong in (qkv.double(), qkv.half(), qkv[0], qkv[..., :8], qkv[:, :, :2]):
        with pytest.raises(RuntimeError, match="puma::packed_attention: qkv must be"):
            torch.ops.puma.packed_attention(wrong, 0.25)
    for grad, saved in (
        (out[:, :4], logsumexp),
        (out.double(), logsumexp),
        (out.bfloat16(), logsumexp),
        (out, logsumexp[..., :4]),
        (out, logsumexp.bfloat16()),
    ):
        with pytest.raises(RuntimeError, match="puma::packed_attention_backward: grad must be"):
            torch.ops.puma.packed_attention_backward(grad, qkv, saved, 0.25)
