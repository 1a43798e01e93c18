"""What embedding a dataset passes on, and in which state it leaves the model."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import puma_plugin
from puma_plugin.datasets import UnifiedDataset
from puma_plugin.evaluation import embed, evaluate_retrieval
from puma_plugin.testers import MultiDistributionTester


class Vectors(Dataset[Any]):
    """Items that are their own embeddings, of two distributions."""

    def __init__(self, count: int = 24, **attributes: Any) -> None:
        classes = torch.arange(count) % 6
        self.labels = torch.stack([classes, classes % 2], dim=1)
        self.rows = torch.randn(6, 5)[classes] + 0.9 * torch.randn(count, 5)
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index], self.labels[index]


def test_what_a_dataset_tells_is_passed_on() -> None:
    query = torch.arange(24) < 12
    told = {
        "item_ids": torch.arange(24) // 2 + 100,
        "distribution_names": ["birds", "cars"],
        "class_names": list("abcdef"),
        "query_mask": query,
        "gallery_mask": ~query,
        "local_classes": torch.arange(24) % 6 // 2,
        "recall_ks": {"cars": (1, 3)},
    }
    dataset = Vectors(**told)
    embedded = embed(nn.Identity(), dataset, batch_size=7)
    assert torch.equal(embedded.embeddings, dataset.rows)
    for name, value in told.items():
        found = getattr(embedded, name)
        assert torch.equal(found, value) if isinstance(value, Tensor) else found == value
    for protocol in ("honest", "paper-code"):
        expected = evaluate_retrieval(
            dataset.rows,
            dataset.labels,
            told["item_ids"],
            ["birds", "cars"],
            query,
            ~query,
            (1, 2),
            distribution_ks={"cars": (1, 3)},
            protocol=protocol,  # type: ignore[arg-type]
            local_classes=told["local_classes"],
            class_names=list("abcdef"),
        )
        assert repr(embedded.evaluate((1, 2), protocol)) == repr(expected)  # type: ignore[arg-type]


def test_of_a_dataset_that_has_labels_only() -> None:
    dataset = Vectors()
    dataset.labels = dataset.labels.numpy()  # type: ignore[assignment]
    embedded = embed(lambda rows: 2 * rows, dataset)
    assert torch.equal(embedded.embeddings, 2 * dataset.rows)
    assert torch.equal(embedded.labels, torch.as_tensor(dataset.labels))
    assert embedded.item_ids.tolist() == list(range(24))
    assert embedded.distribution_names == ["distribution 0", "distribution 1"]
    assert embedded.query_mask is embedded.gallery_mask is embedded.class_names is embedded.local_classes is None
    assert embedded.evaluate() == evaluate_retrieval(dataset.rows, dataset.labels)


def test_the_model_is_in_evaluation_mode_and_gets_its_modes_back() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    dataset = Vectors()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embedded = embed(model, dataset, batch_size=5)
    assert [module.training for module in (model, *model)] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not embedded.embeddings.requires_grad
    torch.testing.assert_close(embedded.embeddings, model.eval()(dataset.rows).detach())


def test_precision_and_collation() -> None:
    seen: list[tuple[torch.dtype, int]] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, rows: Tensor) -> Tensor:
            out = self.linear(rows)
            seen.append((out.dtype, len(rows)))
            return out

    def collate(items: list[Any]) -> Any:
        return torch.stack([row + 1 for row, _ in items]), torch.stack([label for _, label in items])

    model, dataset = Model(), Vectors()
    low = embed(model, dataset, batch_size=10, amp_dtype=torch.bfloat16, collate_fn=collate)
    assert seen == [(torch.bfloat16, 10), (torch.bfloat16, 10), (torch.bfloat16, 4)]
    assert low.embeddings.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(low.embeddings, model.linear(dataset.rows + 1), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), 4, r"attribute labels of shape \(N, 2\)"),
        (torch.zeros(4, 3, dtype=torch.int64), 4, r"attribute labels of shape \(N, 2\)"),
        (None, 4, r"attribute labels of shape \(N, 2\)"),
        (np.zeros((0, 2), int), 0, "dataset is empty"),
    ],
)
def test_refused_datasets(labels: Any, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(nn.Identity(), Vectors(count, labels=labels))


def test_a_model_that_gives_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must return embeddings \(B, D\), got shape \(24, 5, 1\)"):
        embed(nn.Unflatten(1, (5, 1)), Vectors())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda rows: (rows, rows), r"must return embeddings \(B, D\), got a tuple"),
        (lambda rows: rows[:3], "must return one embedding per image, got 3 for 24 images"),
        (lambda rows: rows.repeat(2, 1), "must return one embedding per image, got 48 for 24 images"),
    ],
)
def test_other_outputs_are_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(model, Vectors())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": torch.ones(2, 5), "label": torch.ones(2)}, "got a dict; give a dataset of"),
        ((torch.ones(2, 5), torch.ones(2), torch.arange(2)), "got 3 values; give a dataset of .*, or a collate_fn"),
    ],
)
def test_batches_that_are_no_pairs_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a batch must be a pair \(images, labels\), {message}"):
        embed(nn.Identity(), Vectors(), collate_fn=lambda items: batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_are_cast_to_the_models_own_type(dtype: torch.dtype) -> None:
    dataset, model = Vectors(), nn.Linear(5, 3).to(dtype)
    found = embed(model, dataset).embeddings
    torch.testing.assert_close(found, model(dataset.rows.to(dtype)).float().detach())
    # Autocast casts by itself.
    mixed = embed(model.float(), dataset, amp_dtype=torch.bfloat16).embeddings
    torch.testing.assert_close(mixed, found, rtol=0.05, atol=0.05)


def test_integers_are_left_as_they_are() -> None:
    dataset, model = Vectors(), nn.EmbeddingBag(7, 3)
    dataset.rows = dataset.rows.argsort(dim=1)
    assert torch.equal(embed(model, dataset).embeddings, model(dataset.rows).detach())


class Batch:
    """What a collate function may make: it can be moved, but is no tensor."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.rows.to(device))


def test_batches_that_are_no_tensors_are_moved_only() -> None:
    dataset = Vectors()
    found = embed(
        lambda batch: batch.rows,  # type: ignore[arg-type, return-value]
        dataset,
        collate_fn=lambda items: (Batch(torch.stack([row for row, _ in items])), None),
    )
    assert torch.equal(found.embeddings, dataset.rows)


def test_embedding_leaves_the_random_numbers_of_the_training_alone() -> None:
    dataset = Vectors()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    embed(nn.Identity(), dataset)
    assert torch.equal(torch.rand(3), expected)


class AlwaysTraining(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> "AlwaysTraining":
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


def test_an_eval_that_does_not_reach_the_adapters_is_refused() -> None:
    """Else every pass would draw gates of its own."""
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )
    model = AlwaysTraining(puma_plugin.adapt(vit, adapter_dim=4).train())
    dataset = UnifiedDataset({"a": [(torch.zeros(3, 16, 16), label) for label in (0, 0, 1)]})
    message = r"eval\(\) of this AlwaysTraining leaves its adapters in training mode"
    with pytest.raises(ValueError, match=message):
        embed(model, dataset)
    with pytest.raises(ValueError, match=message):
        MultiDistributionTester(dataloader_num_workers=0).test({"test": dataset}, 0, model)
