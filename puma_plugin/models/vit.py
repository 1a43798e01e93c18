"""``adapt`` and ``eject``: put adapters and prompts into a timm vision transformer, and take them out again."""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from timm.layers import PatchDropout
from torch import nn

from puma_plugin.models.adapted_block import AdaptedBlock
from puma_plugin.models.adapted_module import AdaptedModule, adapted_class, change_class, restore_class
from puma_plugin.models.adapted_vit import AdaptedViT, PromptedViT
from puma_plugin.models.adapter import StochasticAdapter
from puma_plugin.models.arguments import require_generator, require_int
from puma_plugin.models.config import AdaptationConfig
from puma_plugin.models.freezing import freeze, set_frozen_attribute, thaw
from puma_plugin.models.prompt_pool import PromptPool
from puma_plugin.models.support import (
    ADAPTERS_ONLY,
    SUPPORTED,
    WITH_PROMPTS,
    Call,
    Support,
    blocks_agree,
    check_output,
    difference,
    find_support,
)


def adapt(
    vit: nn.Module,
    adapter_dim: int = 128,
    drop: float = 0.5,
    scale: float = 0.1,
    trainable_scale: bool = False,
    pool_size: int = 20,
    prompt_length: int = 8,
    init: Literal["default", "paper"] = "default",
    blocks: Iterable[int] | None = None,
    generator: torch.Generator | None = None,
    paper_batchnorm: bool = False,
) -> AdaptedViT:
    """Freeze a timm vision transformer and add stochastic adapters and a conditional prompt pool, in place.

    The model keeps its identity, the names of its weights and everything it could do; the new parameters are
    ``blocks.<i>.adapter1.*`` (beside attention), ``blocks.<i>.adapter2.*`` (beside the MLP) and ``prompt_pool.*``, on
    the device and in the dtype of the model. The frozen part stays in evaluation mode under ``train()``, except for
    patch dropout. Without prompts a freshly adapted model gives the frozen model's output, up to rounding; this is
    checked.

    Args:
        vit: a timm model; which ones is said in the error for the others.
        adapter_dim: r, width of the adapters.
        drop: probability that a sample skips an adapter in training, in [0, 1).
        scale: factor on the adapters' output.
        trainable_scale: make that factor a parameter of each adapter.
        pool_size: M, number of prompts in the pool; 0 for none.
        prompt_length: L, tokens per prompt.
        init: ``"default"``, or ``"paper"`` for the start of the authors' code (see the two modules; also, both adapters
            of a block then start alike).
        blocks: indices of the blocks that get adapters; None for all.
        generator: source of the initial values (a CPU generator); torch's default one if None.
        paper_batchnorm: multiply prompt weights by 0.999995, as the authors' code does.

    Returns:
        The same object, with the methods of :class:`~puma_plugin.models.AdaptedViT`.

    Raises:
        TypeError: ``vit`` is not a module, or an argument has the wrong type.
        ValueError: the model is not supported or already adapted, has methods set on its instance that would pass over
            adapters or prompts, or an argument is out of range.

    Example:
        >>> vit = timm.create_model("vit_small_patch16_224", num_classes=0)
        >>> puma_plugin.adapt(vit)
        >>> optimizer = torch.optim.AdamW(vit.param_groups(lr=1e-4))
    """
    support = _check_model(vit)
    chosen = _check_blocks(blocks, len(support.block_mixins))
    require_generator(generator)
    config = AdaptationConfig(
        adapter_dim, drop, scale, trainable_scale, pool_size, prompt_length, init, paper_batchnorm, chosen
    )
    if pool_size and not support.prompts:
        raise ValueError(
            f"{type(vit).__name__} can carry adapters but no prompts (it has no _pos_embed where they could enter): "
            f"call adapt(..., pool_size=0). Got pool_size={pool_size}."
        )
    _refuse_replaced(vit, ("train", *(_WITH_PROMPTS_IN_THEM if pool_size else ())))
    for block in cast(Any, vit).blocks:
        _refuse_replaced(block, ("train",))

    was_training = vit.training
    freeze(vit)
    try:
        calls: list[Call] = []
        before = check_output(vit, calls)
        _add_adapters(vit, support, config, generator)
        _self_check(vit, before, calls)
        pool = _new_pool(vit, config, generator) if pool_size else None
    except BaseException:
        _remove_adapters(vit)
        thaw(vit)
        raise
    change_class(vit, PromptedViT if pool_size else AdaptedViT)
    adapted = cast(AdaptedViT, vit)
    adapted.adaptation, adapted.prompt_pool = config, pool
    if pool_size:
        _make_room(adapted, prompt_length)
    return adapted.train(was_training)


def eject(vit: nn.Module) -> nn.Module:
    """Take adapters and prompts out again and undo the freezing: the model is what it was before :func:`adapt`.

    Class, weights, ``requires_grad`` and training flags are restored exactly. The trained adapters are lost; save them
    first if they are worth it.

    Returns:
        The same object.

    Raises:
        TypeError: ``vit`` is not a module.
        ValueError: ``vit`` is not adapted.
    """
    if not isinstance(vit, nn.Module):
        raise TypeError(f"eject() needs an adapted timm model, got {type(vit).__name__}")
    if not isinstance(vit, AdaptedViT):
        raise ValueError(f"eject() needs an adapted model; this {type(vit).__name__} is not adapted{inner_hint(vit)}")
    _require_unwrapped(vit)
    _remove_adapters(vit)
    del vit.prompt_pool, vit.adaptation
    vit.__dict__.pop("gate_generator", None)
    restore_class(vit)
    thaw(vit)
    return vit


def _check_model(vit: Any) -> Support:
    if not isinstance(vit, nn.Module):
        raise TypeError(f"adapt() needs a timm model (torch.nn.Module), got {type(vit).__name__}")
    if isinstance(vit, AdaptedViT):
        raise ValueError("this model is adapted already; call eject() first to adapt it anew")
    if hint := inner_hint(vit):
        raise ValueError(f"adapt() needs the timm model itself, got {type(vit).__name__}{hint}")
    return find_support(vit)


# Of a model on whose instance one of these is set, prompts would not come in, or not go out again.
_WITH_PROMPTS_IN_THEM = ("_pos_embed", "forward_features", "forward_intermediates")


def _refuse_replaced(module: nn.Module, methods: Iterable[str]) -> None:
    if replaced := sorted(vars(module).keys() & set(methods)):
        raise ValueError(
            f"{replaced[0]} is set on the instance of this {type(module).__name__}, which would pass over adapters or "
            f"prompts: `del` it from there first; what is frozen adapt() keeps in evaluation mode itself"
        )


def inner_hint(module: nn.Module, *others: type[nn.Module]) -> str:
    """A hint if ``module`` merely holds the model that was meant, or one of ``others``."""
    place = inner_place(module, *others)
    return f"; did you mean its {place}?" if place else ""


def inner_place(module: nn.Module, *others: type[nn.Module]) -> str:
    """Where ``module`` holds a model that can be adapted, such as ``.trunk[1]``; empty if it is one, or has none."""

    def is_meant(part: nn.Module) -> bool:
        return isinstance(part, (AdaptedViT, *others)) or type(part) in WITH_PROMPTS + ADAPTERS_ONLY

    path = "" if is_meant(module) else next((path for path, part in module.named_modules() if is_meant(part)), "")
    return "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in path.split(".") if name)


def _check_blocks(blocks: Iterable[int] | None, depth: int) -> tuple[int, ...]:
    if blocks is None:
        return tuple(range(depth))
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise TypeError(f"blocks must be block indices such as range(6, 12), or None for all; got {blocks!r}")
    chosen = [require_int("every entry of blocks", index, 0) for index in blocks]
    if len(set(chosen)) != len(chosen) or any(index >= depth for index in chosen):
        raise ValueError(f"blocks must be different indices from 0 to {depth - 1}, got {chosen}")
    return tuple(sorted(chosen))


def _add_adapters(vit: Any, support: Support, config: AdaptationConfig, generator: torch.Generator | None) -> None:
    for index, block in enumerate(vit.blocks):
        if index not in config.blocks:
            change_class(block, AdaptedModule)  # it stays in evaluation mode, whoever calls train()
            continue
        like = next(block.parameters())

        def new_adapter(like: torch.Tensor = like) -> StochasticAdapter:
            return StochasticAdapter(
                vit.embed_dim,
                config.adapter_dim,
                config.drop,
                config.scale,
                config.trainable_scale,
                config.init,
                generator=generator,
                device=like.device,
                dtype=like.dtype,
            )

        adapters = new_adapter(), new_adapter()  # first, so that a failure leaves the block as it was
        change_class(block, support.block_mixins[index])
        block.adapter1, block.adapter2 = adapters
        if config.init == "paper":
            with torch.no_grad():
                block.adapter2.down.copy_(block.adapter1.down)


def _require_unwrapped(vit: Any) -> None:
    """ValueError if what adapt() changed lies inside of something else now, where it would stay adapted."""
    known = {id(vit), *(id(block) for block in vit.blocks)}
    hidden = [name for name, part in vit.named_modules() if isinstance(part, AdaptedModule) and id(part) not in known]
    if hidden:
        raise ValueError(
            f"eject() finds an adapted block inside of a wrapper, {hidden[0]} ({len(hidden)} such): take torch.compile,"
            " checkpoint wrappers and the like off the blocks first"
        )
    for module in (vit, *vit.blocks):
        if isinstance(module, AdaptedModule) and type(module) is not adapted_class(*module._made_of):
            raise ValueError(
                f"eject() needs the classes that adapt() made, but one is a {type(module).__name__} now: take "
                "parametrizations, fully_shard and the like off first"
            )


def _remove_adapters(vit: Any) -> None:
    for block in vit.blocks:
        if isinstance(block, AdaptedBlock):
            del block.adapter1, block.adapter2
        if isinstance(block, AdaptedModule):
            restore_class(block)


def _self_check(vit: nn.Module, before: torch.Tensor | None, calls: list[Call]) -> None:
    vit.eval()
    after = check_output(vit)
    if before is None or after is None:
        return
    if not before.isfinite().all():
        raise ValueError(
            f"self-check impossible: this {type(vit).__name__} gives NaN or infinity for a random image even without "
            f"adapters (in {before.dtype}). Load its weights first, and cast it to float16 only after adapting"
        )
    error = difference(before, after)
    if error is not None and not blocks_agree(vit, calls):
        raise ValueError(
            f"self-check failed: with fresh adapters this {type(vit).__name__} is off by {error:.1e} from its own "
            f"output, so its blocks do not compute what their class says. It was left as it was. {SUPPORTED}"
        )


def _new_pool(vit: Any, config: AdaptationConfig, generator: torch.Generator | None) -> PromptPool:
    like = next(vit.parameters())
    return PromptPool(
        vit.embed_dim,
        config.pool_size,
        config.prompt_length,
        config.init,
        config.paper_batchnorm,
        generator=generator,
        device=like.device,
        dtype=like.dtype,
    )


def _make_room(vit: Any, prompt_length: int) -> None:
    # Patch dropout and rotary embeddings leave the first tokens alone; the prompts are now among those. Eva's patch
    # dropout comes before the prompts enter, so it is not in this list.
    followers = [block.attn for block in vit.blocks if hasattr(block.attn, "num_prefix_tokens")]
    if isinstance(vit.patch_drop, PatchDropout):
        followers.append(vit.patch_drop)
    for module in followers:
        set_frozen_attribute(module, "num_prefix_tokens", module.num_prefix_tokens + prompt_length)
