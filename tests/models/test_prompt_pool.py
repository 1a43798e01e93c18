import pytest
import torch

from puma_plugin.models import PromptPool


@pytest.fixture
def pool() -> PromptPool:
    pool = PromptPool(6, pool_size=4, prompt_length=3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_()
    return pool


def test_prompt_and_weights_by_hand(pool: PromptPool) -> None:
    query = torch.randn(2, 6, dtype=torch.float64)
    prompt, weights = pool(query)
    for b in range(2):
        expected = torch.zeros(3, 6, dtype=torch.float64)
        for m in range(4):
            focused = query[b] * pool.attention[m].exp() / pool.attention[m].exp().sum()
            alpha = torch.dot(focused, pool.keys[m]) / (focused.norm() * pool.keys[m].norm())
            torch.testing.assert_close(weights[b, m], alpha)
            expected = expected + alpha * pool.prompts[m]
        torch.testing.assert_close(prompt[b], expected)


def test_paper_batchnorm_is_the_authors_frozen_batchnorm(pool: PromptPool) -> None:
    query = torch.randn(5, 6, dtype=torch.float64)
    prompt, weights = pool(query)
    pool.paper_batchnorm = True
    scaled_prompt, scaled_weights = pool(query)
    batchnorm = torch.nn.BatchNorm1d(4, affine=False, dtype=torch.float64).eval()
    torch.testing.assert_close(scaled_weights, batchnorm(weights), rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled_prompt, prompt * (1 + 1e-5) ** -0.5, rtol=1e-12, atol=0)


def test_penalty_by_hand(pool: PromptPool) -> None:
    total = 0.0
    for rows in (pool.keys, pool.attention, pool.prompts.reshape(4, 18)):
        for i in range(4):
            for j in range(4):
                total += (torch.dot(rows[i], rows[j]) - float(i == j)) ** 2 / 16
    torch.testing.assert_close(pool.penalty(), 1e-6 * total)
    torch.testing.assert_close(pool.penalty(weight=2.0), 2.0 * total)


def test_penalty_is_not_rounded_under_autocast() -> None:
    pool = PromptPool(384)
    exact = pool.penalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pool.penalty(), exact)


def test_default_start_is_orthogonal_with_different_prompts() -> None:
    pool = PromptPool(384, pool_size=20, prompt_length=8)
    for rows in (pool.keys, pool.attention, pool.prompts.flatten(1)):
        torch.testing.assert_close(rows @ rows.T, torch.eye(20), atol=1e-5, rtol=0)
    assert pool.penalty() < 1e-15


def test_paper_start_repeats_one_prompt_and_has_the_papers_penalty() -> None:
    pool = PromptPool(384, pool_size=20, prompt_length=8, init="paper")
    assert (pool.prompts == pool.prompts[0]).all()
    torch.testing.assert_close(pool.prompts[0] @ pool.prompts[0].T, torch.eye(8), atol=1e-5, rtol=0)
    # ((8 - 1)^2 on the diagonal, 8^2 beside it: 1e-6 * (20 * 49 + 380 * 64) / 400.
    assert pool.penalty().item() == pytest.approx(63.25e-6, rel=1e-4)


def test_start_follows_the_generator() -> None:
    first, second = (PromptPool(8, 3, 2, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_query_of_another_precision_is_accepted() -> None:
    pool = PromptPool(8, 3, 2).to(torch.bfloat16)
    assert pool(torch.randn(2, 8))[0].dtype == torch.bfloat16


def test_repr_says_what_it_is() -> None:
    assert repr(PromptPool(16, 5, 2)) == "PromptPool(5 prompts of 2 x 16)"
    assert "paper_batchnorm=True" in repr(PromptPool(16, 5, 2, paper_batchnorm=True))


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"dim": -1}, ValueError, "dim"),
        ({"pool_size": 0}, ValueError, "pool_size"),
        ({"prompt_length": 0}, ValueError, "prompt_length"),
        ({"prompt_length": "8"}, TypeError, "prompt_length"),
        ({"init": "zeros"}, ValueError, "init"),
        ({"paper_batchnorm": "yes"}, TypeError, "paper_batchnorm"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} "):
        PromptPool(**{"dim": 8, **arguments})
