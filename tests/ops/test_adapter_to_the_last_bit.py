"""The adapter on the CPU, to the last bit: what loops, vectors, products of pairs and matrix unit round and keep."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from puma_plugin.ops import loader, reference, stochastic_adapter

HALF_TYPES = (torch.bfloat16, torch.float16)


def every_value(dtype: torch.dtype) -> Tensor:
    """All bit patterns: subnormals, infinities and NaN among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Whether all are equal, zeros with their sign; one NaN is as good as another."""
    integer = torch.int32 if found.dtype is torch.float32 else torch.int16
    nan = expected.isnan()
    equal = found.view(integer) == expected.view(integer)
    return found.dtype is expected.dtype and bool(torch.where(nan, found.isnan(), equal).all())


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_sums_of_every_value_are_rounded_as_torch_rounds(dtype: torch.dtype, wide: bool) -> None:
    values = every_value(dtype)
    weights = torch.ones(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    for offset in (0, 1, 4097, 30001):  # partners; of other exponents and signs
        # Odd lengths at odd addresses; of a dropped sample residual and branch are added.
        residual, branch = values[1:], values.roll(offset)[1:]
        residual = residual.float() if wide else residual
        shaped = [part.reshape(1, -1, 1) for part in (residual, branch)]
        tokens = torch.zeros(shaped[0].shape, dtype=dtype)
        found = stochastic_adapter(shaped[0], tokens, *weights, torch.zeros(1), branch=shaped[1])
        assert same_bits(found.flatten(), (residual.float() + branch.float()).to(residual.dtype))


@pytest.mark.parametrize(("width", "rank"), [(32, 32), (96, 64), (24, 8)])
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_kept_samples_add_to_every_value(dtype: torch.dtype, width: int, rank: int) -> None:
    values = every_value(dtype)
    residual = values[: values.numel() // width * width].reshape(1, -1, width)
    tokens = torch.zeros_like(residual)
    tokens[..., 0] = 1
    down, up = torch.zeros(width, rank, dtype=dtype), torch.zeros(rank, width, dtype=dtype)
    down[0, 1] = 2
    up[1] = (torch.arange(width) % 5).to(dtype)
    found = stochastic_adapter(residual, tokens, down, up, scale=0.25)
    assert same_bits(found, (residual.float() + 0.5 * up[1].float()).to(dtype))


def whole_numbers(*shape: int, share: float, generator: torch.Generator) -> Tensor:
    """-1 and 1 in a share of the places, else 0."""
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
    return signs * (torch.rand(shape, generator=generator) < share)


@pytest.mark.parametrize("branch_dtype", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("residual_dtype", "dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16), (torch.float32, torch.float32)],
)
@pytest.mark.parametrize(
    ("samples", "tokens", "width", "rank"),
    # Multiples of 32, for the matrix unit and products of pairs, of 16, for tiles of vectors, which may be wider, and
    # others; fewer rows than a step takes, and more than are collected for the weights' gradients.
    [
        (1, 1, 32, 32),
        (5, 37, 64, 32),
        (5, 37, 96, 96),
        (7, 9, 40, 24),
        (7, 41, 80, 48),
        (7, 41, 64, 48),
        (9, 31, 16, 16),
        (9, 205, 384, 128),
        (9, 64, 128, 64),
        (0, 4, 64, 32),
        (3, 0, 64, 32),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_whole_numbers_come_out_exactly(
    set_threads: Callable[[int], None],
    threads: int,
    samples: int,
    tokens: int,
    width: int,
    rank: int,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
) -> None:
    # Small whole numbers: no order of summation and no rounding on the way can change them.
    if branch_dtype is torch.float32 and residual_dtype is not torch.float32:
        pytest.skip("a branch is never wider than the residual")
    set_threads(threads)
    generator = torch.Generator().manual_seed(samples + width)
    shape = (samples, tokens, width)
    drawn = [
        whole_numbers(*size, share=share, generator=generator)
        for size, share in ((shape, 0.2), (shape, 0.2), ((width, rank), 4 / width), ((rank, width), 4 / rank))
    ]
    gate = torch.tensor([2.0, 0.0, 0.0, 4.0, 2.0, 2.0, 0.0, 4.0, 2.0])[:samples]
    grad = whole_numbers(*shape, share=0.2, generator=generator)
    branch = None if branch_dtype is None else whole_numbers(*shape, share=0.5, generator=generator)

    exact = [part.double().requires_grad_() for part in drawn]
    out = reference.stochastic_adapter(*exact, gate.double(), 0.5, None if branch is None else branch.double())
    expected = [out, *torch.autograd.grad(out, exact, grad.double())]
    assert all(float(part.detach().abs().max()) <= 256 for part in expected if part.numel() > 0)

    dtypes = (residual_dtype, dtype, dtype, dtype)
    leaves = [part.to(wanted).requires_grad_() for part, wanted in zip(drawn, dtypes, strict=True)]
    out = stochastic_adapter(*leaves, gate, 0.5, branch=None if branch is None else branch.to(branch_dtype))
    found = [out, *torch.autograd.grad(out, leaves, grad.to(residual_dtype))]
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left.double(), right)
    if not gate.all():
        assert not found[2][gate == 0].any()
    # Each gradient alone, as for a frozen adapter or a first block.
    out = stochastic_adapter(*leaves, gate, 0.5, branch=None if branch is None else branch.to(branch_dtype))
    for place in (1, 2, 3):
        (alone,) = torch.autograd.grad(out, leaves[place], grad.to(residual_dtype), retain_graph=True)
        assert torch.equal(alone, found[1 + place])


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_threads_without_rows(set_threads: Callable[[int], None], dtype: torch.dtype, kept: int) -> None:
    set_threads(4)
    generator = torch.Generator().manual_seed(0)
    shapes = ((40, 31, 64), (40, 31, 64), (64, 32), (32, 64))
    leaves = [whole_numbers(*shape, share=0.1, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    gate = torch.zeros(40)
    gate[25 : 25 + kept] = 2.0
    out = stochastic_adapter(*leaves, gate, 0.5)
    found = [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out = reference.stochastic_adapter(*exact, gate.double(), 0.5)
    for left, right in zip(found, [out, *torch.autograd.grad(out, exact, torch.ones_like(out))], strict=True):
        assert torch.equal(left.double(), right)


def torch_spreads_nan(rows: Tensor, weights: Tensor) -> bool:
    """Whether torch's own product has NaN in other rows than those with NaN; that of 2.10 does where C % 32 != 0."""
    rows = rows.clone()
    rows[3, 7] = torch.nan
    product = rows @ weights
    return bool(product[torch.arange(len(rows)) != 3].isnan().any())


@pytest.mark.parametrize(("width", "rank"), [(64, 32), (40, 24)])
@pytest.mark.parametrize("dtype", [*HALF_TYPES, torch.float32])
def test_nan_stays_in_its_row(dtype: torch.dtype, width: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    residual, tokens = (torch.randn(2, 41, width, generator=generator).to(dtype) for _ in range(2))
    down = torch.randn(width, rank, generator=generator).to(dtype)
    if torch_spreads_nan(tokens[1], down):
        pytest.skip("this torch's own product, which is used here, lets NaN into other rows")
    up = torch.randn(rank, width, generator=generator).to(dtype)
    clean = stochastic_adapter(residual, tokens, down, up)
    tokens[1, 3, 7] = torch.nan
    found = stochastic_adapter(residual, tokens, down, up)
    assert found[1, 3].isnan().all()
    found[1, 3] = clean[1, 3]
    assert torch.equal(found, clean)


@pytest.mark.parametrize(("width", "rank"), [(64, 16), (64, 32), (64, 48), (48, 16)])
@pytest.mark.parametrize("dtype", [*HALF_TYPES, torch.float32])
def test_infinity_goes_where_its_weights_lead(dtype: torch.dtype, width: int, rank: int) -> None:
    # Tiles that are filled up with zeros are no weights: infinity times 0 would be NaN.
    tokens = torch.zeros(1, 5, width, dtype=dtype)
    tokens[0, 2, 3] = torch.inf
    tokens[0, 3, 3] = -torch.inf
    down, up = torch.ones(width, rank, dtype=dtype), torch.ones(rank, width, dtype=dtype)
    residual = torch.ones_like(tokens)
    found = stochastic_adapter(residual, tokens, down, up)
    assert found[0, 2].eq(torch.inf).all()
    found[0, 2] = 1
    assert torch.equal(found, residual)


@pytest.mark.parametrize(
    ("dtype", "width", "rank"),
    [
        (torch.bfloat16, 128, 64),
        (torch.bfloat16, 96, 48),
        (torch.bfloat16, 120, 60),
        (torch.float32, 128, 64),
        (torch.float32, 144, 48),
        (torch.float32, 96, 144),
    ],
)
def test_results_are_the_same_every_time_and_forward_with_any_number_of_threads(
    set_threads: Callable[[int], None], dtype: torch.dtype, width: int, rank: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((12, 101, width), (12, 101, width), (width, rank), (rank, width))
    ]
    gate = (torch.arange(12) % 3 > 0).float()

    def run() -> list[Tensor]:
        out = stochastic_adapter(*leaves, gate)
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    set_threads(3)
    first, second = run(), run()
    set_threads(1)
    alone = run()
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    if dtype is torch.float32 and loader.CPU_MODULE.cpu_capability() == "default":
        return  # torch's own products, whose order may depend on the number of rows
    # Of the gradients, those of the weights are summed over the threads.
    assert all(torch.equal(left, right) for left, right in zip(first[:3], alone[:3], strict=True))


@pytest.mark.parametrize(("width", "rank", "torchs_own"), [(32, 16, False), (24, 8, True)])
def test_sums_over_many_rows_do_not_add_up_their_rounding(
    set_threads: Callable[[int], None], width: int, rank: int, torchs_own: bool
) -> None:
    # All positive and all on one thread: one running sum would lose a digit.
    set_threads(1)
    generator = torch.Generator().manual_seed(0)
    shapes = ((256, 197, width), (256, 197, width), (width, rank), (rank, width))
    leaves = [torch.rand(*shape, generator=generator).requires_grad_() for shape in shapes]
    grad = torch.rand(*shapes[0], generator=generator)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(reference.stochastic_adapter(*exact), exact[2:], grad.double())

    def errors(adapter: Callable[..., Tensor]) -> list[float]:
        found = torch.autograd.grad(adapter(*leaves), leaves[2:], grad)
        return [float(((left - right) / right).abs().max()) for left, right in zip(found, expected, strict=True)]

    found = errors(stochastic_adapter)
    # Other sizes go through torch's products, which keep one running sum on some processors.
    allowed = errors(reference.stochastic_adapter) if torchs_own else [0.0, 0.0]
    assert all(error < max(2e-6, 2 * most) for error, most in zip(found, allowed, strict=True)), (found, allowed)
