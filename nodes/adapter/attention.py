"""Attention probabilities of ComfyUI's UNets: recorded without changing any bit of the output, or replaced.

ComfyUI allows one callable per transformer block in place of its attention. The callables of this module are installed
on a copy of the sampling options, call the callable that was there before, and read or replace the rows of the positive
prompt only.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch, optimized_attention
from einops import rearrange, reduce
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...onrw_core.diffusion.attention import probabilities
from ...onrw_core.diffusion.model import AttentionControl, AttentionMaps
from .patches import name_of, on_copies, refused_in_place

__all__ = ["differentiable", "keep", "with_control"]

KINDS = {"self": "attn1", "cross": "attn2"}
HEADS = "b tokens (heads d) -> b heads tokens d"


def differentiable(model_options: dict[str, Any]) -> dict[str, Any]:
    """Sampling options under which a UNet of ComfyUI can be differentiated.

    The fast attention kernels have no backward pass, or a backward pass that needs several times the memory, so torch's
    attention is used. An attention override of the user is applied around it if it can be differentiated; otherwise it
    is left out with a warning. ControlNets add to the skip tensors in place, after the next block saved them for the
    backward pass, so that block gets a copy.
    """
    options = refused_in_place(model_options)
    transformer = on_copies(options.get("transformer_options", {}))
    transformer["optimized_attention_override"] = _attention(transformer.get("optimized_attention_override"))
    name = "input_block_patch_after_skip"
    patches = transformer["patches"]
    patches[name] = [*patches.get(name, []), lambda h, extra: h.clone()]
    options["transformer_options"] = transformer
    return options


def _attention(override: Callable | None) -> Callable:
    """A differentiable attention override: torch's attention, inside the user's override if that is differentiable."""
    kept: list[bool] = []  # whether the user's override is kept; filled at the first call

    def attention(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
        if override is not None and not kept:
            kept.append(_has_gradient(override, args, kwargs))
            if not kept[0]:
                logging.warning(
                    "ONRW: the attention override %s cannot be differentiated; torch's attention is used in its place",
                    name_of(override),
                )
        if override is not None and kept[0]:
            return override(attention_pytorch, *args, **kwargs)
        return attention_pytorch(*args, **kwargs)

    return attention


def _has_gradient(override: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an attention override is differentiable, tested on copies of queries, keys and values."""
    with torch.inference_mode(False), torch.enable_grad(), saved_tensors_hooks(lambda t: t, lambda t: t):
        inputs = [tensor.detach().clone().requires_grad_() for tensor in args[:3]]
        try:
            out = override(attention_pytorch, *inputs, *args[3:], **kwargs)
            gradients = torch.autograd.grad(out.float().square().sum(), inputs)
        except RuntimeError:  # no graph, or a kernel without a backward pass
            return False
    return all(gradient.isfinite().all() for gradient in gradients)


def with_control(
    model_options: dict[str, Any],
    unet: Any,
    control: AttentionControl,
    maps: AttentionMaps,
    shape: torch.Size,
    tokens: int,
) -> dict[str, Any]:
    """Sampling options that record attention into `maps` and inject attention, as `control` defines.

    Args:
        model_options: The options to copy; existing patches keep working.
        unet: The diffusion model, whose transformer blocks are looked up.
        control: What to record and what to replace.
        maps: Filled in during the model call, with the rows of the first conditioning.
        shape: Of the latents, (B, C, h, w). Areas of a prompt that cover less are ignored.
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
    kept = weakref.ref(maps)
    injected = control.inject.self_attention.get(layer) if control.inject is not None and kind == "self" else None

    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        if previous is not None:
            out = previous(q, k, v, extra)
        else:
            precision = extra["attn_precision"]
            out = optimized_attention(q, k, v, extra["n_heads"], attn_precision=precision, transformer_options=extra)
        height, width = extra["activations_shape"][-2:]
        whole = tuple(extra["original_shape"][-2:]) == tuple(shape[-2:])
        # Token merging and tiling change the number of queries, so there is no map of the whole image.
        if not whole or q.shape[1] != height * width or 0 not in extra["cond_or_uncond"]:
            return out
        start = shape[0] * extra["cond_or_uncond"].index(0)
        rows = slice(start, start + shape[0])
        # ComfyUI may evaluate a prompt in parts, each with options of its own: the first part is recorded. The
        # recomputation in the backward pass must do the same as the first computation.
        first = owners.setdefault(layer, extra["cond_or_uncond"]) is extra["cond_or_uncond"]
        if first and control.record(kind, q.shape[1]):
            query, key = (rearrange(t[rows], HEADS, heads=extra["n_heads"]) for t in (q, k))
            found = probabilities(query, key, control.mean)
            if kind == "cross" and found.shape[-1] != tokens:
                found = reduce(found, "b heads n (copies tokens) -> b heads n tokens", "sum", tokens=tokens)
            keep(kept, kind, layer, found, (height, width))
        if injected is not None:
            out = torch.cat([out[:start], _attend(injected, v[rows]).to(out), out[rows.stop :]])
        return out

    return attention


def keep(maps: weakref.ref[AttentionMaps], kind: str, layer: str, found: Tensor, grid: tuple[int, int]) -> None:
    """Record a map, the first of its layer.

    The reference is weak because the function that records is kept for the recomputation in the backward pass: with a
    reference of its own it would keep the maps, their graph, and so the recomputation, for ever.
    """
    kept = maps()
    if kept is not None:
        (kept.self_attention if kind == "self" else kept.cross_attention).setdefault(layer, found)
        kept.sizes[layer] = grid


def _attend(probabilities: Tensor, v: Tensor) -> Tensor:
    """Values (B, M, heads * d) gathered by given probabilities (B or 1, heads, N, M)."""
    heads = probabilities.shape[1]
    values = rearrange(v, HEADS, heads=heads).float()
    return rearrange(probabilities.to(values) @ values, "b heads tokens d -> b tokens (heads d)")


def _blocks(unet: Any) -> list[tuple]:
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
