import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from puma_plugin import EmbeddingHead, UnifiedEmbedder, adapt, eject, load_adapter, save_adapter
from puma_plugin.models import load_embedder, read_adapter_metadata

SMALL = {"adapter_dim": 4, "pool_size": 3, "prompt_length": 2}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def backbone(make_vit: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    """``backbone()``: the same untouched model, a fresh copy at every call."""
    weights = make_vit().state_dict()

    def make() -> nn.Module:
        vit = make_vit()
        vit.load_state_dict(weights)
        return vit

    return make


@pytest.fixture
def trained(backbone: Callable[[], nn.Module]) -> nn.Module:
    vit = adapt(backbone(), **SMALL, drop=0.25)
    with torch.no_grad():
        for parameter in vit.trainable_parameters():
            parameter.normal_(std=0.2)
    return vit


@pytest.fixture
def path(tmp_path: Path, trained: nn.Module) -> Path:
    save_adapter(trained, tmp_path / "runs" / "adapter.safetensors")
    return tmp_path / "runs" / "adapter.safetensors"


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    """Change tensors or metadata of an adapter file; as a file of earlier versions, it has no digest then."""
    with safe_open(path, "pt") as file:
        kept = file.metadata()
    kept.pop("digest", None)
    save_file(load_file(path) if tensors is None else tensors, path, {**kept, **metadata})


def test_a_bare_model_is_adapted_as_the_file_says(
    path: Path, trained: nn.Module, backbone: Callable[[], nn.Module], images: Tensor
) -> None:
    vit = backbone()
    state = torch.get_rng_state()
    assert load_adapter(vit, path) is vit
    assert torch.equal(state, torch.get_rng_state())
    assert vit.adaptation == trained.adaptation
    assert torch.equal(vit(images), trained(images))
    assert all(adapter.drop == 0.25 for adapter in vit.adapters())


def test_an_adapted_model_takes_the_tensors(
    path: Path, trained: nn.Module, backbone: Callable[[], nn.Module], images: Tensor
) -> None:
    vit = adapt(backbone(), **SMALL, drop=0.75)
    load_adapter(vit, path)
    assert torch.equal(vit(images), trained(images))
    assert vit.adapters()[0].drop == 0.75  # how this run drops is its own business


def test_the_file_holds_the_trained_tensors_and_nothing_else(path: Path, trained: nn.Module) -> None:
    tensors = load_file(path)
    own = {name: parameter for name, parameter in trained.named_parameters() if parameter.requires_grad}
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)
    metadata = read_adapter_metadata(path)
    assert metadata["head"] is None
    assert metadata["adaptation"]["adapter_dim"] == 4
    assert metadata["backbone"]["class"] == "VisionTransformer"
    assert metadata["backbone"]["name"].startswith("vit_tiny_patch16_224.")


def test_variants_survive(tmp_path: Path, backbone: Callable[[], nn.Module], images: Tensor) -> None:
    for i, arguments in enumerate(
        [
            {"trainable_scale": True, "scale": 0.5, "adapter_dim": 3, "pool_size": 0},
            {"blocks": [1], "adapter_dim": 3, "pool_size": 2, "paper_batchnorm": True, "init": "paper"},
            {"blocks": [], "pool_size": 2},
        ]
    ):
        vit = adapt(backbone(), **arguments)
        with torch.no_grad():
            for parameter in vit.trainable_parameters():
                parameter.add_(0.1)
        save_adapter(vit, tmp_path / f"{i}.safetensors")
        assert torch.equal(load_adapter(backbone(), tmp_path / f"{i}.safetensors")(images), vit(images))


def test_embedder_with_its_head(
    tmp_path: Path, trained: nn.Module, backbone: Callable[[], nn.Module], images: Tensor
) -> None:
    embedder = UnifiedEmbedder(trained, EmbeddingHead(192, 16))
    save_adapter(embedder, tmp_path / "e.safetensors")
    assert read_adapter_metadata(tmp_path / "e.safetensors")["head"] == {"in_features": 192, "embedding_size": 16}
    expected = embedder(images)
    assert torch.equal(load_embedder(backbone(), tmp_path / "e.safetensors")(images), expected)
    other = UnifiedEmbedder(backbone(), EmbeddingHead(192, 16))
    assert load_adapter(other, tmp_path / "e.safetensors") is other
    assert torch.equal(other(images), expected)

    vit = backbone()
    with pytest.raises(ValueError, match=r"holds a head as well: use load_embedder\(vit, path\)"):
        load_adapter(vit, tmp_path / "e.safetensors")
    assert torch.equal(load_adapter(vit, tmp_path / "e.safetensors", ignore_head=True)(images), trained(images))
    wrong = UnifiedEmbedder(backbone(), EmbeddingHead(192, 8))
    with pytest.raises(ValueError, match=r"head\.linear\.weight has shape \(16, 192\) instead of \(8, 192\)"):
        load_adapter(wrong, tmp_path / "e.safetensors")
    assert type(wrong.trunk) is timm.models.VisionTransformer


def test_a_file_without_head_is_refused_for_an_embedder(path: Path, backbone: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="holds no head"):
        load_adapter(UnifiedEmbedder(backbone(), EmbeddingHead(192, 16)), path)
    with pytest.raises(ValueError, match="holds no head"):
        load_embedder(backbone(), path)
    with pytest.raises(TypeError, match=r"load_embedder\(\) needs a timm model, got str"):
        load_embedder("vit", path)


def test_size_of_the_papers_model(tmp_path: Path) -> None:
    vit = adapt(timm.create_model("vit_small_patch16_224", num_classes=0))
    save_adapter(UnifiedEmbedder(vit, EmbeddingHead(384, 128)), tmp_path / "paper.safetensors")
    size = (tmp_path / "paper.safetensors").stat().st_size
    assert 4 * 2_485_376 < size < 11_000_000


def test_another_backbone_is_refused_with_what_differs(
    path: Path, backbone: Callable[[], nn.Module], make_vit: Callable[..., nn.Module]
) -> None:
    vit = backbone()
    with torch.no_grad():
        vit.blocks[1].mlp.fc1.weight[0, 0] += 1.0
    with pytest.raises(
        ValueError,
        match=r"another backbone: both are VisionTransformer \S+; other values in 1 of 30 tensors: blocks\.1\.mlp",
    ):
        load_adapter(vit, path)
    assert type(vit) is timm.models.VisionTransformer
    with pytest.raises(ValueError, match=r"other shape: pos_embed \[1, 10, 192\] instead of \[1, 5, 192\]"):
        load_adapter(make_vit(img_size=48), path)
    with pytest.raises(ValueError, match=r"not expected: blocks\.2\.norm1\.weight, .* and 9 more"):
        load_adapter(make_vit(depth=3), path)
    with pytest.raises(ValueError, match=r"expected VisionTransformer vit_tiny\S+, found Eva eva02.*missing: "):
        load_adapter(make_vit("eva02_tiny_patch14_224", img_size=28), path)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ({"num_heads": 6}, r"its output is off by [\d.]+%"),
        ({"act_layer": "relu"}, r"its output is off by [\d.]+%"),
        ({"global_pool": "", "class_token": True}, r"its output has the shape \[1, 5, 192\] instead of \[1, 192\]"),
    ],
)
def test_a_backbone_that_computes_something_else_with_the_same_weights_is_refused(
    path: Path,
    backbone: Callable[[], nn.Module],
    make_vit: Callable[..., nn.Module],
    arguments: dict[str, Any],
    difference: str,
    adapted: bool,
) -> None:
    vit = make_vit(**arguments)
    vit.load_state_dict(backbone().state_dict())
    if adapted:
        adapt(vit, **SMALL)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    kind = type(vit)
    with pytest.raises(ValueError, match=f"something else with the same weights: for one image {difference}"):
        load_adapter(vit, path)
    assert type(vit) is kind
    assert vit.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    rewrite(path, example_output="null")  # as in files of earlier versions
    load_adapter(vit, path)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_relpos_small_patch16_224"])
def test_backbones_without_absolute_positions_may_have_another_image_size(
    name: str, make_vit: Callable[..., nn.Module], tmp_path: Path
) -> None:
    small, large = make_vit(name, img_size=32), make_vit(name, img_size=64)
    large.load_state_dict(small.state_dict())
    save_adapter(adapt(small, adapter_dim=4, pool_size=0), tmp_path / "a.safetensors")
    assert load_adapter(large, tmp_path / "a.safetensors") is large


def test_the_output_is_taken_in_evaluation_mode_and_the_modes_stay(path: Path, trained: nn.Module) -> None:
    example = read_adapter_metadata(path)["example_output"]
    assert (example["image"], example["shape"]) == ([1, 3, 32, 32], [1, 192])
    assert (example["dtype"], len(example["values"])) == ("torch.float32", 192)
    trained.train()
    modes = [module.training for module in trained.modules()]
    save_adapter(trained, path)
    assert [module.training for module in trained.modules()] == modes
    assert read_adapter_metadata(path)["example_output"] == example


def test_a_file_saved_from_a_float16_model_says_so(backbone: Callable[[], nn.Module], tmp_path: Path) -> None:
    half = adapt(backbone()).half()
    save_adapter(half, tmp_path / "half.safetensors")
    load_adapter(backbone().half(), tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"saved from a float16 model.*: load into model\.half\(\), then cast it"):
        load_adapter(backbone(), tmp_path / "half.safetensors")


def test_backbone_counts_without_its_classifier_and_in_other_precisions(
    path: Path, trained: nn.Module, backbone: Callable[[], nn.Module], images: Tensor
) -> None:
    vit = backbone()
    vit.reset_classifier(5)
    load_adapter(vit, path)
    torch.testing.assert_close(vit.forward_head(vit.forward_features(images), pre_logits=True), trained(images))
    torch.testing.assert_close(load_adapter(backbone().double(), path)(images.double()).float(), trained(images))
    assert load_adapter(backbone().to(torch.bfloat16), path).prompt_pool.keys.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"other values in .* float16 rounds the weights: load into"):
        load_adapter(backbone().half(), path)


def test_a_backbone_without_readable_weights_is_refused(
    path: Path, trained: nn.Module, backbone: Callable[[], nn.Module], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this tool moves to torchao
        packed = torch.ao.quantization.quantize_dynamic(trained, {nn.Linear}, dtype=torch.qint8)
    quantised = r"its blocks\.0\.attn\.qkv\.\S+ is no tensor .* quantisation .* save or load adapters before"
    with pytest.raises(ValueError, match=quantised):
        save_adapter(packed, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=quantised):
        load_adapter(eject(packed), path)
    with pytest.raises(ValueError, match=r"its cls_token is on the meta device .* load the backbone's weights first"):
        load_adapter(backbone().to("meta"), path)
    assert not (tmp_path / "a.safetensors").exists()


def test_an_adapted_model_takes_the_weights_and_is_given_back(
    path: Path, trained: nn.Module, backbone: Callable[[], nn.Module], images: Tensor
) -> None:
    vit = adapt(backbone(), **SMALL, drop=0.25)
    assert load_adapter(vit, path) is vit
    assert torch.equal(vit(images), trained(images))


def test_a_model_takes_its_adapters_back(path: Path, trained: nn.Module, images: Tensor) -> None:
    expected = trained(images)
    bare = eject(trained)
    assert not torch.equal(bare(images), expected)
    assert torch.equal(load_adapter(bare, path)(images), expected)


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ({"adapter_dim": 8}, "adapter_dim is 4 in the file and 8 in the model"),
        ({"pool_size": 4}, "pool_size is 3 in the file and 4 in the model"),
        ({"prompt_length": 1}, "prompt_length is 2 in the file and 1 in the model"),
        ({"scale": 0.2}, r"scale is 0\.1 in the file and 0\.2 in the model"),
        ({"blocks": [0]}, r"blocks is \(0, 1\) in the file and \(0,\) in the model"),
        ({"trainable_scale": True}, "trainable_scale is False in the file"),
    ],
)
def test_another_dimension_is_refused(
    path: Path, backbone: Callable[[], nn.Module], arguments: dict[str, Any], difference: str
) -> None:
    vit = adapt(backbone(), **{**SMALL, **arguments})
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    with pytest.raises(ValueError, match=f"does not fit this adapted model: .*{difference}"):
        load_adapter(vit, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_truncated_file_is_refused(path: Path, backbone: Callable[[], nn.Module], keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    vit = backbone()
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        load_adapter(vit, path)
    assert type(vit) is timm.models.VisionTransformer


def test_other_files_are_refused(path: Path, tmp_path: Path, backbone: Callable[[], nn.Module]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no adapter file at .*none\.safetensors"):
        load_adapter(backbone(), tmp_path / "none.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"save_adapter\(\) did not write it"):
        load_adapter(backbone(), tmp_path / "other.safetensors")
    rewrite(path, puma_format_version="2")
    with pytest.raises(ValueError, match="adapter format 2, this puma_plugin reads up to 1"):
        load_adapter(backbone(), path)


def test_damaged_contents_are_refused_and_the_model_is_left_alone(
    path: Path, backbone: Callable[[], nn.Module]
) -> None:
    tensors = load_file(path)
    metadata = read_adapter_metadata(path)
    undamaged = {name: json.dumps(value) for name, value in metadata.items()}
    good, backbone_of_file, example = (metadata[key] for key in ("adaptation", "backbone", "example_output"))
    vit = backbone()
    for damage, message in (
        ({"adaptation": "{"}, "metadata of .* are damaged"),
        ({"adaptation": json.dumps({**good, "drop": 2})}, "damaged: drop must be"),
        ({"adaptation": json.dumps([4])}, "metadata of .* are damaged"),
        ({"backbone": "{}"}, "damaged: .*class, name, fingerprint"),
        ({"backbone": json.dumps({**backbone_of_file, "fingerprint": "0", "tensors": {"x": 1}})}, "damaged: .*tensors"),
        ({"backbone": json.dumps([])}, "damaged: .*class, name, fingerprint"),
        ({"head": json.dumps({"in_features": 8})}, "damaged: .*embedding_size"),
        ({"head": json.dumps({"in_features": 8, "embedding_size": 0})}, "damaged: .*embedding_size"),
        ({"example_output": json.dumps([1])}, "damaged: .*must hold dtype, image, shape, values"),
        ({"example_output": json.dumps({**example, "values": []})}, "damaged: .*as many values as its shape says"),
        ({"example_output": json.dumps({**example, "values": [float("nan")] * 192})}, "damaged: .*finite numbers"),
        ({"example_output": json.dumps({**example, "values": ["a"] * 192})}, "damaged: .*finite numbers"),
        ({"adaptation": json.dumps({**good, "blocks": [0, 9]})}, "blocks must be different indices from 0 to 1"),
        ({"adaptation": json.dumps({**good, "adapter_dim": 5})}, r"down has shape \(192, 4\) instead of \(192, 5\)"),
    ):
        rewrite(path, tensors, **{**undamaged, **damage})
        with pytest.raises(ValueError, match=message):
            load_adapter(vit, path)
        assert type(vit) is timm.models.VisionTransformer
    rewrite(path, {**tensors, "prompt_pool.keys": tensors["prompt_pool.keys"].int()}, **undamaged)
    with pytest.raises(ValueError, match=r"prompt_pool\.keys has the type torch\.int32 instead of torch\.float32"):
        load_adapter(vit, path)
    renamed = {name.replace("keys", "locks"): tensor for name, tensor in tensors.items()}
    rewrite(path, renamed, **undamaged)
    with pytest.raises(ValueError, match=r"prompt_pool\.keys is missing; prompt_pool\.locks is not expected"):
        load_adapter(vit, path)
    assert list(vit.state_dict()) == list(backbone().state_dict())


def test_what_cannot_be_saved(tmp_path: Path, backbone: Callable[[], nn.Module], trained: nn.Module) -> None:
    target = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match=r"adapt\(\) has changed, got VisionTransformer"):
        save_adapter(backbone(), target)
    for wrapper, inner in ((nn.DataParallel(trained), "module"), (torch.compile(trained), "_orig_mod")):
        with pytest.raises(TypeError, match=rf"did you mean its \.{inner}\?"):
            save_adapter(wrapper, target)
        with pytest.raises(ValueError, match=rf"load_adapter\(\) needs .* did you mean its \.{inner}\?"):
            load_adapter(wrapper, target)
    trained.norm.weight.requires_grad_()
    with pytest.raises(ValueError, match=r"1 trainable parameters .* would be lost: norm\.weight\. Save"):
        save_adapter(trained, target)
    with pytest.raises(TypeError, match="got str"):
        load_adapter("vit", target)
    assert not list(tmp_path.iterdir())


def test_a_head_of_its_own_kind_is_saved_and_fits_its_like(tmp_path: Path, trained: nn.Module) -> None:
    path = tmp_path / "a.safetensors"
    heads = [EmbeddingHead(trained.num_features, 4) for _ in range(3)]
    for head in heads[:2]:
        parametrize.register_parametrization(head.linear, "weight", nn.Identity())
    save_adapter(UnifiedEmbedder(trained, heads[0]), path)
    load_adapter(UnifiedEmbedder(trained, heads[1]), path)
    assert torch.equal(heads[1].linear.weight, heads[0].linear.weight)
    with pytest.raises(ValueError, match=r"head\.linear\.weight is missing"):
        load_adapter(UnifiedEmbedder(trained, heads[2]), path)


class Squared(EmbeddingHead):
    """The same weights, another function of them."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) ** 2


def test_a_head_of_another_class_is_refused(
    tmp_path: Path, trained: nn.Module, backbone: Callable[[], nn.Module], images: Tensor
) -> None:
    path = tmp_path / "squared.safetensors"
    embedder = UnifiedEmbedder(trained, Squared(192, 16))
    save_adapter(embedder, path)
    with pytest.raises(
        ValueError, match="head of class Squared, this one is EmbeddingHead, which may compute something else"
    ):
        load_embedder(backbone(), path)
    found = load_adapter(UnifiedEmbedder(backbone(), Squared(192, 16)), path)
    assert torch.equal(found(images), embedder(images))
    save_adapter(UnifiedEmbedder(trained, EmbeddingHead(192, 16)), path)
    with pytest.raises(
        ValueError, match="head of class EmbeddingHead, this one is Squared, which may compute something else"
    ):
        load_adapter(UnifiedEmbedder(backbone(), Squared(192, 16)), path)
    # Files of earlier versions do not tell.
    rewrite(path, head_class="")
    load_adapter(UnifiedEmbedder(backbone(), Squared(192, 16)), path)


def test_adapters_that_are_not_as_adapt_made_them_are_not_saved(tmp_path: Path, trained: nn.Module) -> None:
    """The file would load as another model, or not at all."""
    path, model = tmp_path / "a.safetensors", trained

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            save_adapter(model, path)

    first = model.blocks[0].adapter1
    scale, first.scale = first.scale, 1.0
    refused(r"an adapter's scale is 1, adapt\(\) gave 0\.1, .*adapt it with the scale that it shall have")
    first.scale = scale
    own = model.blocks[1].adapter2
    model.blocks[1].adapter2 = first
    refused(r"blocks\.1\.adapter2\.down is missing \(2 such\): .* or save model.state_dict\(\) instead")
    model.blocks[1].adapter2 = own
    block = model.blocks[0]
    model.blocks[0] = torch.compile(block)
    refused(r"blocks\.0\._orig_mod\.adapter1\.down is not where adapt\(\) puts one \(8 such\)")
    with pytest.raises(ValueError, match=r"inside of a wrapper, blocks\.0\._orig_mod \(1 such\): take torch.compile"):
        eject(model)
    model.blocks[0] = block
    save_adapter(model, path)
    parametrize.register_parametrization(model, "pos_embed", nn.Identity())
    with pytest.raises(ValueError, match=r"one is a Parametrized.* now: take parametrizations"):
        eject(model)


def test_an_interrupted_write_leaves_the_old_file(
    path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(values: dict[str, Tensor], temporary: Path, metadata: dict[str, str]) -> None:
        temporary.write_bytes(b"half of it")
        raise OSError("no space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("puma_plugin.utils.tensor_files.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_adapter(trained, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["adapter.safetensors"]
