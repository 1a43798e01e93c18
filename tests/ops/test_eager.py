"""What operators ask before they run, one question at a time."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from puma_plugin.ops import loader, plain_pytorch
from puma_plugin.ops.eager import (
    cpu_kernel_dtype,
    differentiable_once,
    explain,
    in_backward,
    is_autocast,
    is_plain,
    refuse_tangents,
    without_frame,
)

SINGLE, HALF, DOUBLE = (torch.ones(2, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64))

needs_library = pytest.mark.skipif(not loader.CPU_LIBRARY.loaded, reason=loader.CPU_LIBRARY.reason)


@pytest.fixture
def cuda_autocast() -> Iterator[None]:
    """As within torch.autocast("cuda"), also where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("cuda_autocast")
def test_autocast_is_of_one_kind_of_device() -> None:
    assert is_autocast("cuda")
    assert not is_autocast("cpu")
    assert not is_autocast("meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert is_autocast("cpu")
        assert not is_autocast("meta")


@needs_library
def test_kernels_run_in_the_one_type_that_all_tensors_have() -> None:
    assert cpu_kernel_dtype(SINGLE, None, torch.nn.Parameter(SINGLE)) is torch.float32
    assert cpu_kernel_dtype(HALF, HALF) is torch.bfloat16
    for others in ((SINGLE, HALF), (DOUBLE,), (SINGLE, DOUBLE), (SINGLE, SINGLE.to("meta")), (SINGLE.to_sparse(),)):
        assert cpu_kernel_dtype(*others) is None


@needs_library
def test_under_autocast_kernels_run_in_its_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert all(cpu_kernel_dtype(*both) is torch.bfloat16 for both in ((SINGLE,), (HALF,), (SINGLE, HALF)))
        assert cpu_kernel_dtype(SINGLE, DOUBLE) is None
    with torch.autocast("cpu", torch.float16):
        assert cpu_kernel_dtype(SINGLE) is None


@needs_library
def test_what_looks_at_operators_sees_torchs() -> None:
    found = []

    def ask(tensor: Tensor) -> Tensor:
        found.append(cpu_kernel_dtype(SINGLE))
        return tensor

    torch.vmap(ask)(SINGLE)
    with forward_ad.dual_level():
        ask(SINGLE)
    with FlopCounterMode(display=False):
        ask(SINGLE)
    with plain_pytorch():
        ask(SINGLE)
    assert found == [None] * 4
    ask(SINGLE)
    assert found[-1] is torch.float32


def test_functorch_is_not_plain() -> None:
    plain = []
    torch.vmap(lambda tensor: plain.append(is_plain()) or tensor)(SINGLE)
    assert (plain, is_plain()) == ([False], True)


def test_a_gradient_stays_what_it_is_unless_it_may_be_differentiated() -> None:
    with torch.no_grad():
        assert differentiable_once(SINGLE, "this") is SINGLE
    grad = differentiable_once(SINGLE, "this")
    assert torch.equal(grad, SINGLE)
    with pytest.raises(RuntimeError, match="this can be differentiated once"):
        grad.sum().backward()


def test_the_autograd_wrapper_sees_a_backward_that_is_recorded() -> None:
    def excluded() -> bool:
        return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality)

    with in_backward():
        assert not excluded()
    with torch.no_grad(), in_backward():
        assert excluded()


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_what_is_wrong_with_arguments_hides_what_the_operator_said(error: type[Exception]) -> None:
    def validate(tensor: Tensor) -> None:
        raise error(f"{tuple(tensor.shape)} is wrong")

    def call(check: Callable[[Tensor], None]) -> None:
        try:
            raise RuntimeError("said in C++")
        except RuntimeError:
            explain(check, SINGLE)

    with pytest.raises(error, match=r"\(2,\) is wrong") as caught:
        call(validate)
    assert caught.value.__suppress_context__
    call(lambda tensor: None)  # nothing is wrong


def test_tangents_are_refused_with_the_way_out() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(SINGLE, SINGLE)
        refuse_tangents("this", SINGLE, None)
        for tensors in ((dual,), (None, SINGLE, dual)):
            with pytest.raises(
                NotImplementedError, match=r"this has no forward-mode derivative; use .*reference\.this,"
            ):
                refuse_tangents("this", *tensors)


def test_without_a_frame_it_is_the_same_operator() -> None:
    assert without_frame(len) is len
    add = without_frame(torch.ops.aten.add.Tensor)
    assert add is not torch.ops.aten.add.Tensor
    assert torch.equal(add(SINGLE, SINGLE), 2 * SINGLE)
