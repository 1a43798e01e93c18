"""Frozen vision transformers whose adapters and prompts are computed in other ways.

Each function changes how an adapted model computes, not what: parameters, their names and the random gates stay, so
that loss and gradients can be compared with the original's.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.peers import adapter, prompts
from puma_plugin.models import StochasticAdapter
from puma_plugin.models.frozen_branches import run_attention, run_mlp
from puma_plugin.ops import reference


def use_authors_form(model: Any) -> Any:
    """As the authors' code computes: each norm twice, every sample through the adapter, (B, M, C) in the matching."""
    for block in model.blocks:
        block.forward = partial(_authors_block, block)
    model.prompt_pool.forward = partial(_authors_pool, model.prompt_pool)
    return model


def use_torch_branches(model: Any) -> Any:
    """Ours, but the frozen attention and MLP computed by torch's operators, as they are where anybody looks in."""
    for block in model.blocks:
        for branch in (block.attn, block.mlp):
            branch.register_forward_hook(_look)
    return model


def leave_adapters_out(model: Any) -> Any:
    """Our frozen branches and prompts, no adapters."""
    for block in model.blocks:
        block.forward = partial(_bare_block, block)
        for module in (block.adapter1, block.adapter2):
            module.requires_grad_(False)
    return model


def use_fixed_form(model: Any) -> Any:
    """The norm shared, gate and scale in one ``addcmul``, two products in the matching: plain PyTorch at its best."""
    for block in model.blocks:
        block.forward = partial(_fixed_block, block)
    model.prompt_pool.forward = partial(_fixed_pool, model.prompt_pool)
    return model


def _look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    pass


def _bare_block(block: Any, x: Tensor) -> Tensor:
    x = x + block.drop_path1(block.scale_attention(run_attention(block.attn, block.norm1(x))))
    return x + block.drop_path2(block.scale_mlp(run_mlp(block.mlp, block.norm2(x))))


def _gate(module: StochasticAdapter, x: Tensor) -> Tensor | None:
    return module.draw_gate(x.shape[0], x.device)


def _authors_adapter(module: StochasticAdapter, residual: Tensor, tokens: Tensor) -> Tensor:
    scale = float(module.scale)
    return adapter.authors(residual, tokens, module.down, module.up, _gate(module, residual), scale)


def _fixed_adapter(module: StochasticAdapter, residual: Tensor, tokens: Tensor) -> Tensor:
    return adapter.fixed(residual, tokens, module.down, module.up, _gate(module, residual), float(module.scale))


def _authors_block(block: Any, x: Tensor) -> Tensor:
    x = _authors_adapter(block.adapter1, x + block.drop_path1(block.ls1(block.attn(block.norm1(x)))), block.norm1(x))
    return _authors_adapter(block.adapter2, x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), block.norm2(x))


def _fixed_block(block: Any, x: Tensor) -> Tensor:
    tokens = block.norm1(x)
    x = _fixed_adapter(block.adapter1, x + block.drop_path1(block.ls1(block.attn(tokens))), tokens)
    tokens = block.norm2(x)
    return _fixed_adapter(block.adapter2, x + block.drop_path2(block.ls2(block.mlp(tokens))), tokens)


def _authors_pool(pool: Any, query: Tensor) -> tuple[Tensor, Tensor]:
    return prompts.authors(query.to(pool.keys.dtype), pool.keys, pool.attention, pool.prompts)


def _fixed_pool(pool: Any, query: Tensor) -> tuple[Tensor, Tensor]:
    return reference.match_prompts(query.to(pool.keys.dtype), pool.keys, pool.attention, pool.prompts)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
