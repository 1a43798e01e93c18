"""The stochastic adapter's arguments: what is refused, in which words, and that nothing outside tensors is read."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from adapter_formula import OP
from torch import Tensor

from puma_plugin.ops import plain_pytorch, stochastic_adapter

BAD = [
    ("residual", torch.zeros(3, 8), ValueError, r"residual must have shape \(B, N, C\), got \(3, 8\)"),
    ("tokens", torch.zeros(2, 4, 8), ValueError, r"tokens must have residual's shape \(2, 3, 8\), got \(2, 4, 8\)"),
    ("down", torch.zeros(7, 4), ValueError, r"down must have shape \(C, r\) with C = 8, got \(7, 4\)"),
    ("down", torch.zeros(8, 4, 1), ValueError, r"down must have shape .* got \(8, 4, 1\)"),
    ("down", torch.zeros(8, 0), ValueError, r"C and r must be at least 1, got down of shape \(8, 0\)"),
    ("up", torch.zeros(4, 7), ValueError, r"up must have shape \(r, C\) = \(4, 8\), got \(4, 7\)"),
    ("up", torch.zeros(5, 8), ValueError, r"up must have shape \(r, C\) = \(4, 8\), got \(5, 8\)"),
    ("up", torch.zeros(4, 8, 1), ValueError, r"up must have shape .* got \(4, 8, 1\)"),
    ("tokens", torch.zeros(2, 3, 8, dtype=torch.int64), TypeError, "tokens must be float32, .*, got torch.int64"),
    ("down", torch.zeros(8, 4, dtype=torch.bfloat16), TypeError, "got torch.bfloat16 and torch.float32"),
    ("up", torch.zeros(4, 8, dtype=torch.float64), TypeError, "down and up must have tokens' dtype torch.float32"),
    ("residual", torch.zeros(2, 3, 8, dtype=torch.float64), TypeError, "residual must .* dtype torch.float32.*float64"),
    ("residual", torch.zeros(2, 3, 8, dtype=torch.bfloat16), TypeError, "residual must have .*, got torch.bfloat16"),
    ("tokens", torch.zeros(2, 3, 8, device="meta"), ValueError, "on residual's device cpu, got tokens on meta"),
    ("down", torch.zeros(8, 4, device="meta"), ValueError, "down on meta"),
    ("up", torch.zeros(4, 8, device="meta"), ValueError, "up on meta"),
    ("gate", torch.zeros(3), ValueError, r"gate must have shape \(B,\) with B = 2, got \(3,\)"),
    ("gate", torch.zeros(2, 1), ValueError, r"gate must have shape \(B,\)"),
    ("gate", torch.zeros(2, dtype=torch.bool), TypeError, "gate must be floating point .* got torch.bool"),
    ("gate", torch.zeros(2, device="meta"), ValueError, "gate must be on residual's device cpu, got meta"),
    ("gate", torch.zeros(2, requires_grad=True), TypeError, r"gate\.detach\(\)"),
    ("scale", torch.zeros(2), ValueError, r"one element, got shape \(2,\)"),
    ("scale", "0.1", TypeError, "scale must be a number .* got '0.1'"),
    ("scale", True, TypeError, "scale must be a number .* got True"),
    ("scale", float("nan"), ValueError, "scale must be finite, got nan"),
    ("scale", float("inf"), ValueError, "scale must be finite, got inf"),
]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize(("name", "value", "kind", "message"), BAD)
def test_errors_at_the_door(
    name: str, value: Tensor, kind: type[Exception], message: str, with_gradient: bool, plain: bool
) -> None:
    arguments = {"residual": torch.zeros(2, 3, 8), "tokens": torch.zeros(2, 3, 8), "down": torch.zeros(8, 4)}
    arguments |= {"up": torch.zeros(4, 8), "gate": torch.ones(2), "scale": 0.1}
    for parameter in ("tokens", "down", "up"):
        arguments[parameter].requires_grad_(with_gradient)
    with plain_pytorch() if plain else nullcontext(), pytest.raises(kind, match=message) as error:
        stochastic_adapter(**(arguments | {name: value}))
    # A refusal of the compiled operator, which names nothing, does not stand above the explanation.
    assert error.value.__context__ is None or error.value.__suppress_context__


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("residual", "rest"), [
    (torch.float32, torch.float64), (torch.bfloat16, torch.float16), (torch.float64, torch.bfloat16)
])  # fmt: skip
def test_a_residual_of_another_type_is_refused(residual: torch.dtype, rest: torch.dtype, plain: bool) -> None:
    tokens, down, up = (torch.zeros(size, dtype=rest) for size in ((2, 3, 8), (8, 4), (4, 8)))
    with (
        plain_pytorch() if plain else nullcontext(),
        pytest.raises(TypeError, match=f"residual must have tokens' dtype {rest}, .*, got {residual}"),
    ):
        stochastic_adapter(tokens.to(residual), tokens, down, up)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("tokens", "weights"), [
    (torch.float64, torch.float32), (torch.bfloat16, torch.float16), (torch.float32, torch.float64)
])  # fmt: skip
def test_weights_of_another_type_are_refused(tokens: torch.dtype, weights: torch.dtype, plain: bool) -> None:
    x, down, up = torch.zeros(2, 3, 8, dtype=tokens), torch.zeros(8, 4, dtype=weights), torch.zeros(4, 8, dtype=weights)
    with (
        plain_pytorch() if plain else nullcontext(),
        pytest.raises(TypeError, match=f"down and up must have tokens' dtype {tokens}, .* got {weights} and {weights}"),
    ):
        stochastic_adapter(x, x, down, up)


@pytest.mark.parametrize("plain", [False, True])
def test_tokens_without_width_are_refused(plain: bool) -> None:
    tokens = torch.zeros(2, 3, 0)
    with plain_pytorch() if plain else nullcontext(), pytest.raises(ValueError, match="C and r must be at least 1"):
        stochastic_adapter(tokens, tokens, torch.zeros(0, 4), torch.zeros(4, 0))


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [case for case in BAD if isinstance(case[1], Tensor) and "detach" not in case[3] and "one element" not in case[3]],
)
def test_the_operator_itself_reads_nothing_that_is_not_there(
    name: str, value: Tensor, kind: type[Exception], message: str
) -> None:
    arguments = {"residual": torch.zeros(2, 3, 8), "tokens": torch.zeros(2, 3, 8), "down": torch.zeros(8, 4)}
    arguments |= {"up": torch.zeros(4, 8), "gate": torch.ones(2), name: value}
    expected = kind if value.device.type == "meta" else RuntimeError
    with pytest.raises(expected, match=message if value.device.type == "meta" else r"puma::stochastic_adapter: "):
        OP(*arguments.values(), None, 0.1, False)


@pytest.mark.parametrize(("place", "value"), [
    (0, torch.zeros(2, 3, 8, dtype=torch.float64)),  # the gradient
    (0, torch.zeros(2, 3, 7)),
    (1, torch.zeros(1, 3, 8)),  # the tokens
    (3, torch.zeros(1, 1)),  # up
    (4, torch.ones(3)),  # the gate
    (5, torch.zeros(0, 4)),  # hidden
    (5, torch.zeros(6, 4, dtype=torch.bfloat16)),
    (6, torch.zeros(0)),  # prepared
])  # fmt: skip
def test_so_does_its_backward(place: int, value: Tensor) -> None:
    arguments = [torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), torch.zeros(8, 4), torch.zeros(4, 8), torch.ones(2)]
    arguments += [torch.zeros(6, 4), torch.zeros(0, dtype=torch.uint8)]
    torch.ops.puma.stochastic_adapter_backward(*arguments, 0.1, True, True)
    arguments[place] = value
    with pytest.raises(RuntimeError, match="puma::stochastic_adapter: "):
        torch.ops.puma.stochastic_adapter_backward(*arguments, 0.1, True, True)


def test_other_tokens_the_second_time_are_refused(adapter_inputs: Callable[..., list[Tensor]], device: str) -> None:
    residual, tokens, down, up = adapter_inputs(2, 3, 8, 4, torch.float32)
    out = stochastic_adapter(residual, tokens, down, up, recompute=(lambda x: x[:1], tokens))
    with pytest.raises(
        ValueError, match=r"recompute must give the tokens once more, of shape \(2, 3, 8\); .*\(1, 3, 8\)"
    ):
        out.sum().backward()


def test_an_error_that_is_not_about_arguments_stays_what_it_is() -> None:
    x, down, up = torch.zeros(2, 3, 8), torch.zeros(8, 4), torch.zeros(4, 8)
    with pytest.raises(NotImplementedError, match="SparseCPU"):
        stochastic_adapter(x.to_sparse(), x, down, up)
