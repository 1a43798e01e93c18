"""What the operators need to know before they leave torch.library's autograd wrapper aside.

That wrapper can be traced (``torch.compile``, ``torch.export``), but it is Python code under the dispatcher and costs
more than a small call itself. Eager code goes past it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from puma_plugin.ops import loader

# Inside, operators run their kernels (or a dispatch mode) at once, without the autograd wrapper.
below_autograd = torch._C._AutoDispatchBelowAutograd
_PLAIN = "puma_plugin.ops.plain_pytorch(), whose help says what else that needs"
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch  # of dispatch modes that see operators before autograd does


def asked_when_compiled(setting: Callable[[], bool]) -> Callable[[], bool]:
    """A setting that torch.compile cannot trace: compiled code keeps what it was while it was compiled.

    What ``torch.compiler.assume_constant_result`` does, which imports the whole compiler.
    """
    setting._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return setting


def is_plain() -> bool:
    """Whether this is eager code: nothing traces it and no functorch transform is active."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def is_recorded() -> bool:
    """Whether operators are recorded, counted or replaced one by one: by a dispatch mode or ``torch.jit.trace``."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
        or torch._C._get_tracing_state() is not None
    )


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for this kind of device."""
    # The first is the faster question, and mostly enough; torch knows no autocast for "meta".
    return torch._C._is_any_autocast_enabled() and device_type != "meta" and torch.is_autocast_enabled(device_type)


def cpu_kernel_dtype(*tensors: Tensor | None) -> torch.dtype | None:
    """The type in which CPU kernels should run, of operators that torch has, too; None where torch's own should.

    It is what torch would multiply all these tensors in, if that is float32 or bfloat16: their own, under autocast its.
    ``torch.export``, ``torch.jit.trace``, functorch, forward-mode differentiation and dispatch modes see torch's own
    operators, and so do float32 tensors where products may be computed with less.
    """
    # First what is cheap to see: on a GPU this stands in front of every branch.
    if not all(tensor is None or tensor.is_cpu for tensor in tensors):
        return None
    if "cpu" not in loader.KERNEL_DEVICES or forward_ad._current_level >= 0:
        return None
    if torch._C._are_functorch_transforms_active() or _is_exporting():
        return None
    if not torch.compiler.is_compiling() and is_recorded():
        return None
    given = [tensor for tensor in tensors if tensor is not None]
    if not all(type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided for tensor in given):
        return None
    dtypes = {tensor.dtype for tensor in given}
    if is_autocast("cpu") and dtypes <= {torch.float32, torch.bfloat16}:
        dtypes = {torch.get_autocast_dtype("cpu")}
    if dtypes == {torch.float32} and _float32_is_exact():
        return torch.float32
    return torch.bfloat16 if dtypes == {torch.bfloat16} else None


@asked_when_compiled
def _is_exporting() -> bool:
    # In code that torch 2.10 compiles, the function itself is taken to be true.
    return torch.compiler.is_exporting()


@asked_when_compiled
def _float32_is_exact() -> bool:
    """Whether torch multiplies float32 in float32."""
    return torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")  # type: ignore[attr-defined]


def in_backward() -> AbstractContextManager[None]:
    """What the backward of eager code calls operators in.

    With ``create_graph`` the autograd wrapper has to see the call: it refuses a second derivative.
    """
    return nullcontext() if torch.is_grad_enabled() else below_autograd()


def differentiable_once(grad: Tensor, name: str) -> Tensor:
    """What a backward without autograd of its own returns: with ``create_graph``, a second derivative is refused.

    torch's ``once_differentiable`` refuses only where the gradient that came in can be differentiated. That of a plain
    sum cannot, but what a kernel makes of it depends on the saved tensors all the same: a penalty on it would silently
    have no gradient.
    """
    if not torch.is_grad_enabled():
        return grad
    refuse: Any = torch._C._functions.DelayedError(once_only(name), 1)
    refused: Tensor = refuse(grad.detach().requires_grad_())
    return refused


def once_only(name: str, way: str = f"use {_PLAIN}") -> str:
    """What to say of a second derivative: of an operator that torch has, too, or with another way out."""
    return f"{name} can be differentiated once; for second derivatives {way}"


def register_for_compiled_code(
    name: str,
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    refusal: str,
) -> None:
    """Shapes and autograd of ``puma::name`` and ``puma::name_backward``.

    Args:
        name: the operator.
        fake, fake_backward: make results of the right shape from tensors without numbers.
        setup_context, backward: as ``torch.library.register_autograd`` wants them.
        refusal: what to say of a second derivative.
    """

    def refuse(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(refusal)

    torch.library.register_fake(f"puma::{name}", fake)
    torch.library.register_fake(f"puma::{name}_backward", fake_backward)
    torch.library.register_autograd(f"puma::{name}", backward, setup_context=setup_context)
    torch.library.register_autograd(f"puma::{name}_backward", refuse)


def without_frame(operator: Any) -> Any:
    """What an operator's ``__call__`` does nothing but call; saves a Python frame in code that nobody traces."""
    return getattr(operator, "_op", operator)


def explain(validate: Callable[..., None], *arguments: Tensor | None) -> None:
    """Raises what ``validate`` says about arguments that an operator has refused; nothing if it accepts them.

    In eager code the compiled operators check sizes, dtypes and devices in a fraction of the time that Python takes for
    it; which argument is wrong and what would be right is found out behind them.
    """
    try:
        validate(*arguments)
    except (TypeError, ValueError) as reason:
        raise reason from None


def refuse_tangents(name: str, *tensors: Tensor | None) -> None:
    """Inside ``forward_ad``: the operators have no forward mode; without this check tangents would silently be lost.

    Raises:
        NotImplementedError: one of the tensors carries a tangent.
    """
    if torch.compiler.is_compiling():
        return
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(f"{name} has no forward-mode derivative; {way_out(name)}")


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Inside ``torch.func.grad`` and what is made of it: the operators' autograd cannot be transformed.

    Raises:
        NotImplementedError: one of the tensors is to be differentiated.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    functorch: Any = torch._C._functorch
    levels = functorch.get_interpreter_stack() or ()
    differentiates = any(level.key() == functorch.TransformType.Grad for level in levels)
    # Parameters that merely take a gradient are not what it differentiates by.
    wrapped = [t for t in tensors if t is not None and functorch.is_functorch_wrapped_tensor(t)]
    if differentiates and any(tensor.requires_grad for tensor in wrapped):
        raise NotImplementedError(f"{name} cannot be differentiated by torch.func; {way_out(name)}")


def way_out(name: str) -> str:
    """What to do where an operator's derivatives do not reach."""
    return f"use puma_plugin.ops.reference.{name}, which is plain PyTorch, or for a whole model {_PLAIN}"
