"""Attention probabilities of ComfyUI's UNets: recorded without changing one bit of the output, or replaced.

ComfyUI lets one callable per transformer block stand in for its attention. Ours are installed on a copy of the sampling
options, call whatever stood there before, and read or replace the rows of the positive prompt only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch, optimized_attention
from torch import Tensor

from ...onrw_core.attention import probabilities
from ...onrw_core.model import AttentionControl, AttentionMaps

__all__ = ["differentiable", "with_control"]

KINDS = {"self": "attn1", "cross": "attn2"}


def differentiable(model_options: dict[str, Any]) -> dict[str, Any]:
    """Sampling options under which a UNet of ComfyUI can be differentiated.

    The fast attention kernels have no backward pass, or one that costs several times the memory: torch's own is used.
    ControlNets add to the skip tensors in place, after the next block saved them: that block gets a copy.
    """

    def attention(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
        return attention_pytorch(*args, **kwargs)

    options = dict(model_options)
    transformer = dict(options.get("transformer_options", {}))
    transformer["optimized_attention_override"] = attention
    patches = dict(transformer.get("patches", {}))
    name = "input_block_patch_after_skip"
    patches[name] = [*patches.get(name, []), lambda h, extra: h.clone()]
    transformer["patches"] = patches
    options["transformer_options"] = transformer
    return options


def with_control(
    model_options: dict[str, Any],
    unet: torch.nn.Module,
    control: AttentionControl,
    maps: AttentionMaps,
    shape: torch.Size,
    tokens: int,
) -> dict[str, Any]:
    """Sampling options that record into `maps`, and inject, as `control` says.

    Args:
        model_options: The options to copy; patches that are already there go on working.
        unet: The diffusion model, whose transformer blocks are looked up.
        control: What to record and what to replace.
        maps: Filled in during the model call, with the rows of the first conditioning.
        shape: Of the latents, (B, C, h, w). Areas of a prompt that cover less are passed over.
        tokens: Tokens of the first conditioning; a prompt that ComfyUI repeated to match a longer one is folded back.
    """
    options = dict(model_options)
    transformer = dict(options.get("transformer_options", {}))
    replaced = dict(transformer.get("patches_replace", {}))
    for kind, name in KINDS.items():
        table = dict(replaced.get(name, {}))
        for block in _blocks(unet):
            previous = table.get(block, table.get(block[:2]))
            table[block] = _patch(kind, block, previous, control, maps, shape, tokens)
        replaced[name] = table
    transformer["patches_replace"] = replaced
    options["transformer_options"] = transformer
    return options


def _patch(
    kind: str,
    block: tuple,
    previous: Callable | None,
    control: AttentionControl,
    maps: AttentionMaps,
    shape: torch.Size,
    tokens: int,
) -> Callable:
    owners: dict[str, list[int]] = {}
    layer = "_".join(str(part) for part in block)
    recorded = maps.self_attention if kind == "self" else maps.cross_attention
    injected = control.inject.self_attention.get(layer) if control.inject is not None and kind == "self" else None

    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        if previous is not None:
            out = previous(q, k, v, extra)
        else:
            precision = extra["attn_precision"]
            out = optimized_attention(q, k, v, extra["n_heads"], attn_precision=precision, transformer_options=extra)
        height, width = extra["activations_shape"][-2:]
        whole = tuple(extra["original_shape"][-2:]) == tuple(shape[-2:])
        # Token merging and tiling change the number of queries: there is no map of the whole picture then.
        if not whole or q.shape[1] != height * width or 0 not in extra["cond_or_uncond"]:
            return out
        start = shape[0] * extra["cond_or_uncond"].index(0)
        rows = slice(start, start + shape[0])
        # ComfyUI may evaluate a prompt in parts, each with options of its own: the first part counts. When it is
        # computed again in the backward pass, it has to do again what it did.
        first = owners.setdefault(layer, extra["cond_or_uncond"]) is extra["cond_or_uncond"]
        if first and control.record(kind, q.shape[1]):
            heads = (t[rows].unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2) for t in (q, k))
            found = probabilities(*heads, control.mean)
            if kind == "cross" and found.shape[-1] != tokens:
                found = found.unflatten(-1, (-1, tokens)).sum(-2)
            recorded.setdefault(layer, found)
            maps.sizes[layer] = (height, width)
        if injected is not None:
            out = torch.cat([out[:start], _attend(injected, v[rows]).to(out), out[rows.stop :]])
        return out

    return attention


def _attend(probabilities: Tensor, v: Tensor) -> Tensor:
    """Values (B, M, heads * d) gathered by given probabilities (B or 1, heads, N, M)."""
    heads = probabilities.shape[1]
    values = v.unflatten(-1, (heads, -1)).transpose(1, 2).float()
    return (probabilities.to(values) @ values).transpose(1, 2).flatten(-2)


def _blocks(unet: torch.nn.Module) -> list[tuple]:
    """Keys of all transformer blocks: (part, index, depth)."""
    parts = [("input", i, m) for i, m in enumerate(unet.input_blocks)]
    parts += [("middle", 0, unet.middle_block)] if unet.middle_block is not None else []
    parts += [("output", i, m) for i, m in enumerate(unet.output_blocks)]
    return [
        (part, i, depth)
        for part, i, module in parts
        for layer in module
        if isinstance(layer, SpatialTransformer)
        for depth in range(len(layer.transformer_blocks))
    ]
