import math

import pytest
import torch
from torch import nn

from puma_plugin.models import StochasticAdapter


def branch(adapter: StochasticAdapter, tokens: torch.Tensor) -> torch.Tensor:
    """The adapter's output before gate and scale, written out per token."""
    out = torch.empty_like(tokens)
    for b in range(tokens.shape[0]):
        for n in range(tokens.shape[1]):
            hidden = (adapter.down * tokens[b, n][:, None]).sum(0).clamp_min(0)
            out[b, n] = (adapter.up * hidden[:, None]).sum(0)
    return out


@pytest.fixture
def adapter() -> StochasticAdapter:
    adapter = StochasticAdapter(6, 4, drop=0.25, scale=0.3, dtype=torch.float64)
    nn.init.normal_(adapter.up)
    return adapter


def test_evaluation_adds_the_scaled_branch_for_every_sample(adapter: StochasticAdapter) -> None:
    residual, tokens = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(adapter.eval()(residual, tokens), residual + 0.3 * branch(adapter, tokens))


def test_training_keeps_or_skips_whole_samples(adapter: StochasticAdapter) -> None:
    residual, tokens = torch.randn(2, 64, 3, 6, dtype=torch.float64)
    added = adapter(residual, tokens) - residual
    kept = added.flatten(1).abs().amax(1) > 0
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(added[kept], (0.3 / 0.75 * branch(adapter, tokens))[kept], atol=1e-7, rtol=1e-6)


def test_share_of_skipped_samples_is_drop_and_the_mean_is_kept() -> None:
    gate = StochasticAdapter(2, 1, drop=0.3).draw_gate(20_000, torch.device("cpu"))
    assert gate is not None
    assert gate.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    # 5 standard deviations of a mean of 20,000 Bernoulli draws.
    assert (gate == 0).float().mean() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 20_000))


def test_gates_of_their_own_under_vmap() -> None:
    adapter = StochasticAdapter(4, 2, drop=0.5).train()
    nn.init.normal_(adapter.up)
    tokens = torch.ones(3, 4)[None].expand(64, 1, 3, 4)
    with torch.no_grad():
        out = torch.func.vmap(lambda t: adapter(t, t), randomness="different")(tokens)
    changed = (out != tokens).flatten(1).any(dim=1)
    assert 0 < changed.sum() < 64


def test_skipped_samples_pass_untouched_and_give_no_gradient(adapter: StochasticAdapter) -> None:
    residual, tokens = torch.randn(2, 16, 3, 6, dtype=torch.float64)
    tokens.requires_grad_()
    out = adapter(residual, tokens)
    skipped = (out == residual).flatten(1).all(1)
    assert skipped.any()
    out.sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[skipped] == 0).all()
    assert (tokens.grad[~skipped] != 0).flatten(1).any(1).all()


def test_gates_follow_the_seed(adapter: StochasticAdapter) -> None:
    residual, tokens = torch.randn(2, 32, 2, 6, dtype=torch.float64)
    torch.manual_seed(5)
    first = adapter(residual, tokens)
    other = adapter(residual, tokens)
    torch.manual_seed(5)
    assert torch.equal(first, adapter(residual, tokens))
    assert not torch.equal(first, other)


def test_no_gate_without_drop_or_in_evaluation() -> None:
    cpu = torch.device("cpu")
    assert StochasticAdapter(4, 2, drop=0.0).draw_gate(3, cpu) is None
    assert StochasticAdapter(4, 2, drop=0.5).eval().draw_gate(3, cpu) is None


@pytest.mark.parametrize(("init", "bound"), [("default", math.sqrt(6 / 200)), ("paper", math.sqrt(3 / 30))])
def test_start(init: str, bound: float) -> None:
    adapter = StochasticAdapter(200, 30, init=init)
    assert (adapter.up == 0).all()
    assert adapter.down.abs().max() <= bound
    assert adapter.down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_start_follows_the_generator_in_every_dtype() -> None:
    starts = [
        StochasticAdapter(8, 4, generator=torch.Generator().manual_seed(1), dtype=dtype).down.float()
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    ]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0].bfloat16().float(), starts[2])


def test_trainable_scale_is_a_parameter_with_the_right_gradient(adapter: StochasticAdapter) -> None:
    trainable = StochasticAdapter(6, 4, drop=0.0, scale=0.3, trainable_scale=True, dtype=torch.float64)
    trainable.load_state_dict({**adapter.state_dict(), "scale": torch.tensor(0.3)})
    residual, tokens = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    out = trainable(residual, tokens)
    torch.testing.assert_close(out, adapter.eval()(residual, tokens), atol=1e-7, rtol=1e-6)
    out.sum().backward()
    assert isinstance(trainable.scale, nn.Parameter)
    torch.testing.assert_close(trainable.scale.grad, branch(adapter, tokens).sum())


def test_repr_says_what_it_is() -> None:
    assert repr(StochasticAdapter(8, 4, scale=0.2)) == "StochasticAdapter(8 -> 4 -> 8, drop=0.5, scale=0.2)"
    assert "scale=0.1 (trainable)" in repr(StochasticAdapter(8, 4, trainable_scale=True))


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"dim": 0}, ValueError, "dim"),
        ({"adapter_dim": 0}, ValueError, "adapter_dim"),
        ({"adapter_dim": 4.0}, TypeError, "adapter_dim"),
        ({"adapter_dim": True}, TypeError, "adapter_dim"),
        ({"drop": 1.0}, ValueError, "drop"),
        ({"drop": -0.1}, ValueError, "drop"),
        ({"drop": "half"}, TypeError, "drop"),
        ({"scale": float("nan")}, ValueError, "scale"),
        ({"trainable_scale": 1}, TypeError, "trainable_scale"),
        ({"init": "xavier"}, ValueError, "init"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} "):
        StochasticAdapter(**{"dim": 8, "adapter_dim": 4, **arguments})
