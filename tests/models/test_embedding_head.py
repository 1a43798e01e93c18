import pytest
import torch

from puma_plugin import EmbeddingHead


def test_linear_with_bias_then_unit_length() -> None:
    head = EmbeddingHead(6, 4).double()
    features = torch.randn(3, 6, dtype=torch.float64)
    projected = features @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(features), projected / projected.square().sum(1, keepdim=True).sqrt())
    assert sum(parameter.numel() for parameter in EmbeddingHead(384, 128).parameters()) == 49_280


def test_unit_length_is_not_rounded_under_autocast() -> None:
    head = EmbeddingHead(6, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = head(torch.randn(3, 6))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sizes", "error"), [((0, 4), ValueError), ((4, -1), ValueError), ((4, "8"), TypeError)])
def test_bad_sizes(sizes: tuple, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"in_features|embedding_size"):
        EmbeddingHead(*sizes)
