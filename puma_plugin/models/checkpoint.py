"""Adapter files: what was trained, without the backbone, in one small safetensors file."""

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from puma_plugin.models.adapted_vit import AdaptedViT, without_wrappers
from puma_plugin.models.arguments import require_int
from puma_plugin.models.config import AdaptationConfig
from puma_plugin.models.embedding_head import EmbeddingHead
from puma_plugin.models.example_output import compare_outputs, example_output, require_example
from puma_plugin.models.fingerprint import check_description, compare_backbones, describe_backbone
from puma_plugin.models.unified_embedder import UnifiedEmbedder
from puma_plugin.models.vit import adapt, eject, inner_hint, inner_place
from puma_plugin.utils.tensor_files import read_metadata, read_tensors, write_tensors

FORMAT_VERSION = 1


def save_adapter(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write adapters, prompts and, of a :class:`UnifiedEmbedder`, the head to one safetensors file.

    The file also holds the arguments of :func:`adapt`, a description of the backbone (see
    :func:`~puma_plugin.models.fingerprint.describe_backbone`) and the model's output for one image, but none of the
    backbone's weights. It appears whole or not at all.

    Args:
        model: an adapted timm model, or a UnifiedEmbedder around one.
        path: the file; its folder is created. A head of another class, or a parametrized one, is saved with its own
            parameters, which only a head of that class can take.

    Raises:
        TypeError: the model is neither.
        ValueError: parameters take a gradient that would not be in the file, the trunk of a UnifiedEmbedder holds more
            than the adapted model, or adapters are no longer as :func:`adapt` made them (wrapped, shared, pruned,
            another ``scale``), so that the file would give another model; weights are shared out among processes
            (``fully_shard``); a value is not finite; or ``path`` is a folder.
    """
    vit, head = _parts(model)
    if not isinstance(vit, AdaptedViT):
        hint = inner_hint(vit, UnifiedEmbedder)
        raise TypeError(f"save_adapter() needs a model that adapt() has changed, got {type(vit).__name__}{hint}")
    _refuse_sharded(model, "save_adapter")
    _require_as_adapted(vit)
    tensors = _own_tensors(vit, head)
    kept = {id(tensor) for tensor in tensors.values()}
    lost = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in kept
    ]
    if lost:
        raise ValueError(
            f"{len(lost)} trainable parameters belong to neither adapters, prompts nor head and would be lost: "
            f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Save model.state_dict() instead, or freeze them."
        )
    metadata = {
        "puma_format_version": str(FORMAT_VERSION),
        "adaptation": json.dumps(vit.adaptation.to_dict()),
        "backbone": json.dumps(describe_backbone(vit)),
        "head": json.dumps(head and {"in_features": head.in_features, "embedding_size": head.embedding_size}),
        "example_output": json.dumps(example_output(vit)),
        "head_class": "" if head is None else _class_of(head),
    }
    write_tensors(path, tensors, metadata)


def load_adapter(model: nn.Module, path: str | os.PathLike[str], ignore_head: bool = False) -> Any:
    """Load what :func:`save_adapter` wrote. If anything does not fit, the model stays as it was.

    Args:
        model: a timm model, which is adapted as the file says; or one that is adapted already in the same way; or a
            UnifiedEmbedder around one of these, which also takes the head.
        path: the file.
        ignore_head: accept a file with a head for a bare timm model, and leave the head out. To get the embedder as it
            was saved, see :func:`load_embedder`.

    Returns:
        The same object as ``model``.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``model`` is not a module.
        ValueError: the file is damaged, no adapter file or of a newer format; or the backbone's weights, what it
            computes with them, a dimension or the head differs; the message says what. Or the weights are shared out
            among processes (``fully_shard``).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_adapter() needs a timm model or a UnifiedEmbedder, got {type(model).__name__}")
    _refuse_sharded(model, "load_adapter")
    vit, head = _parts(model)
    if hint := inner_hint(vit, UnifiedEmbedder):
        raise ValueError(f"load_adapter() needs a timm model or a UnifiedEmbedder, got {type(vit).__name__}{hint}")
    metadata, tensors = _read(path)
    if head is None and metadata["head"] is not None and not ignore_head:
        raise ValueError(
            f"{path} holds a head as well: use load_embedder(vit, path), or pass ignore_head=True to leave it out"
        )
    if head is not None and metadata["head"] is None:
        raise ValueError(f"{path} holds no head: load it into the trunk, load_adapter(embedder.trunk, path)")
    if difference := compare_backbones(metadata["backbone"], describe_backbone(vit)):
        hint = ""
        if any(parameter.dtype == torch.float16 for parameter in vit.parameters()):
            hint = ". float16 rounds the weights: load into the model as it was trained, then cast it"
        elif "torch.float16" in metadata["backbone"].get("types", ()):  # not in files of earlier versions
            hint = (
                ". It was saved from a float16 model, whose weights are rounded: load into model.half(), then cast it"
            )
        raise ValueError(f"{path} was trained on another backbone: {difference}{hint}")
    if head is not None and metadata["head_class"] not in ("", _class_of(head)):
        raise ValueError(
            f"{path} holds a head of class {metadata['head_class']}, this one is {_class_of(head)}, which may compute "
            "something else with its weights: load_adapter(UnifiedEmbedder(vit, such a head), path)"
        )
    if head is None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    config = _config(metadata, path)
    if isinstance(vit, AdaptedViT):
        _check_config(config, vit.adaptation, path)
        _require_as_adapted(vit)
        own = _own_tensors(vit, head)
        before = {name: tensor.detach().clone() for name, tensor in own.items()}
        _copy(tensors, own, path)
        try:
            _check_output(vit, metadata, path)
        except BaseException:
            _copy(before, own, path)
            raise
        return model
    # A generator of its own: the start is overwritten, so the caller's random numbers need not move.
    adapted = adapt(vit, **config.to_dict(), generator=torch.Generator())
    try:
        _copy(tensors, _own_tensors(adapted, head), path)
        _check_output(adapted, metadata, path)
    except BaseException:
        eject(adapted)
        raise
    return model


def load_embedder(vit: nn.Module, path: str | os.PathLike[str]) -> UnifiedEmbedder:
    """Rebuild a UnifiedEmbedder from a timm model without classifier and a file with a head.

    Raises:
        TypeError: ``vit`` is not a module.
        ValueError: the file holds no head, or any reason that :func:`load_adapter` has.
    """
    if not isinstance(vit, nn.Module):
        raise TypeError(f"load_embedder() needs a timm model, got {type(vit).__name__}")
    sizes = read_adapter_metadata(path)["head"]
    if sizes is None:
        raise ValueError(f"{path} holds no head: use load_adapter(vit, path)")
    parameter = next(vit.parameters())
    head = EmbeddingHead(**sizes).to(parameter.device, parameter.dtype)
    return load_adapter(UnifiedEmbedder(vit, head), path)


def read_adapter_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an adapter file says of itself: ``adaptation``, ``backbone``, ``head``, ``head_class``, ``example_output``.

    ``head`` is None without a head; ``head_class`` is empty and ``example_output`` None in files of earlier versions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no adapter file, or of a newer format.
    """
    return _read(path, with_tensors=False)[0]


def sharded_parameter(model: nn.Module) -> str:
    """Name of the first parameter that is shared out among processes, as ``fully_shard`` does, or an empty string."""
    # A DTensor, whose module takes a second to import.
    return next((name for name, p in model.named_parameters() if hasattr(p, "full_tensor")), "")


def _refuse_sharded(model: nn.Module, caller: str) -> None:
    if name := sharded_parameter(model):
        raise ValueError(
            f"{caller}() needs whole weights, but {name} is shared out among processes (fully_shard): load the adapter "
            "before sharding; to save, load torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) into a model that is not sharded, and save that"
        )


def _parts(model: nn.Module) -> tuple[nn.Module, EmbeddingHead | None]:
    """The ViT and the head.

    Raises:
        ValueError: the trunk does more than the ViT in it, which no adapter file tells of.
    """
    if not isinstance(model, UnifiedEmbedder):
        return model, None
    vit = without_wrappers(model.trunk)
    if place := inner_place(vit):
        raise ValueError(
            f"an adapter file tells of an adapted model and a head, not of what else the trunk of this UnifiedEmbedder "
            f"does, a {type(vit).__name__}: take UnifiedEmbedder(trunk{place}, head), or model.state_dict()"
        )
    return vit, model.head


def _class_of(head: EmbeddingHead) -> str:
    return type(head).__qualname__  # without its module, which may be __main__ or be moved


def _own_tensors(vit: AdaptedViT, head: EmbeddingHead | None) -> dict[str, Tensor]:
    """The parameters that an adapter file holds, by their name in it."""
    own = ("adapter1", "adapter2", "prompt_pool")
    tensors: dict[str, Tensor] = {n: p for n, p in vit.named_parameters() if not set(own).isdisjoint(n.split("."))}
    if head is not None:
        tensors.update({f"head.{name}": parameter for name, parameter in head.named_parameters()})
    return tensors


def _require_as_adapted(vit: AdaptedViT) -> None:
    """ValueError unless the adapters are where, and what, the arguments of adapt() say."""
    config = vit.adaptation
    weights = ("down", "up", "scale") if config.trainable_scale else ("down", "up")
    wanted = {f"blocks.{index}.adapter{half}.{name}" for index in config.blocks for half in (1, 2) for name in weights}
    if vit.prompt_pool is not None:
        wanted |= {f"prompt_pool.{name}" for name, _ in vit.prompt_pool.named_parameters()}
    if odd := sorted(wanted ^ _own_tensors(vit, None).keys()):
        where = "missing" if odd[0] in wanted else "not where adapt() puts one"
        raise ValueError(
            f"{odd[0]} is {where} ({len(odd)} such): take wrappers off the blocks (torch.compile, checkpointing, "
            "parametrizations), do not share or remove adapters, and prune blocks before adapt(); or save "
            "model.state_dict() instead"
        )
    scales = {float(adapter.scale) for adapter in vit.adapters()} if not config.trainable_scale else {config.scale}
    if scales - {config.scale}:
        raise ValueError(
            f"an adapter's scale is {min(scales - {config.scale}):g}, adapt() gave {config.scale:g}, which is what a "
            f"file of this model says: adapt it with the scale that it shall have"
        )


def _read(path: str | os.PathLike[str], with_tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no adapter file at {path}")
    raw = read_metadata(path)
    version = raw.get("puma_format_version", "")
    if not version.isdigit():
        raise ValueError(f"{path} is a safetensors file, but save_adapter() did not write it (no format version)")
    if int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has adapter format {version}, this puma_plugin reads up to {FORMAT_VERSION}: install a newer one"
        )
    try:
        metadata = {key: json.loads(raw[key]) for key in ("adaptation", "backbone", "head")}
        metadata["example_output"] = json.loads(raw.get("example_output", "null"))
        metadata["head_class"] = raw.get("head_class", "")
        check_description(metadata["backbone"])
        require_example(metadata["example_output"])
        if metadata["head"] is not None:
            for size in ("in_features", "embedding_size"):
                require_int(f"{size} of the head", metadata["head"][size], 1)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the metadata of {path} are damaged: {error!r}") from error
    return metadata, read_tensors(path)[1] if with_tensors else {}


def _config(metadata: dict[str, Any], path: str | os.PathLike[str]) -> AdaptationConfig:
    try:
        return AdaptationConfig.from_dict(metadata["adaptation"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the metadata of {path} are damaged: {error}") from error


def _check_config(saved: AdaptationConfig, own: AdaptationConfig, path: str | os.PathLike[str]) -> None:
    if differences := own.differences(saved):
        raise ValueError(
            f"{path} does not fit this adapted model: {'; '.join(differences)}. eject() it first, or adapt "
            "it as the file says"
        )


def _check_output(vit: AdaptedViT, metadata: dict[str, Any], path: str | os.PathLike[str]) -> None:
    if difference := compare_outputs(metadata["example_output"], example_output(vit)):
        raise ValueError(
            f"{path} was trained on a backbone that computes something else with the same weights: for one image "
            f"{difference}. Build it with the arguments that it had (number of heads, activation, pooling and others); "
            f"it was {metadata['backbone']['class']} {metadata['backbone']['name']}".rstrip()
        )


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    problems = [f"{name} is missing" for name in target if name not in source]
    problems += [f"{name} is not expected" for name in source if name not in target]
    problems += [
        f"{name} has shape {tuple(source[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    problems += [
        f"{name} has the type {source[name].dtype} instead of {tensor.dtype}"
        for name, tensor in target.items()
        if name in source and source[name].is_floating_point() != tensor.is_floating_point()
    ]
    if problems:
        raise ValueError(f"{path} does not fit: {'; '.join(problems[:5])}{'; ...' if len(problems) > 5 else ''}")
    for name, tensor in target.items():
        tensor.copy_(source[name])
