"""Recording and replacing attention probabilities in a diffusers network during one call.

A probe replaces the processor of each attention layer during the call. To record, it computes the probabilities in
addition to the output, which is that of the original processor, bit for bit. To inject, it computes the output of the
positive branch from the given probabilities. Each call has its own record, so that a call is a pure function and may
run twice under `torch.utils.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import averaged, grid_size, mask_grid, probabilities, redirected
from ..model import AttentionControl, AttentionMaps
from . import ensure_torchvision

ensure_torchvision()

from diffusers.models.attention_processor import Attention  # noqa: E402  (needs torchvision to import)

__all__ = ["controlled"]

HEADS = "b tokens (heads d) -> b heads tokens d"


@contextmanager
def controlled(
    unet: nn.Module, control: AttentionControl | None, batch: int, size: tuple[int, int]
) -> Iterator[AttentionMaps]:
    """Apply `control` to the next call of `unet`.

    Args:
        unet: The network.
        control: Maps to record or to replace; None for neither.
        batch: Number of rows of the positive branch, the first rows of the network's batch.
        size: (h, w) of the latent.

    Yields:
        The maps, filled by the network's next call.
    """
    maps = AttentionMaps()
    if control is None:
        yield maps
        return
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}
    originals = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.set_processor(_Probe(originals[name], name, control, maps, batch, size))
        yield maps
    finally:
        for name, layer in layers.items():
            layer.set_processor(originals[name])


class _Probe:
    """Replacement of one layer's processor."""

    def __init__(
        self,
        original: Any,
        name: str,
        control: AttentionControl,
        maps: AttentionMaps,
        batch: int,
        size: tuple[int, int],
    ):
        self.original, self.name, self.control, self.maps = original, name, control, maps
        self.batch, self.size = batch, size

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        tokens = hidden_states.shape[1]
        cross = encoder_hidden_states is not None
        if encoder_hidden_states is not None and attn.added_kv_proj_dim is not None:
            rest = attention_mask, temb
            return self._joint(attn, hidden_states, encoder_hidden_states, *rest, **kwargs)
        if self.control.record("cross" if cross else "self", tokens):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query = _normed(rearrange(attn.to_q(hidden_states[: self.batch]), HEADS, heads=attn.heads), attn.norm_q)
            key = _normed(rearrange(attn.to_k(context[: self.batch]), HEADS, heads=attn.heads), attn.norm_k)
            recorded = self.maps.cross_attention if cross else self.maps.self_attention
            recorded[self.name] = probabilities(query, key, self.control.mean)
            self.maps.sizes[self.name] = grid_size(tokens, self.size)
        injected = None
        if self.control.inject is not None and not cross:
            injected = self.control.inject.self_attention.get(self.name)
        if injected is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        if injected.shape[-2:] != (tokens, tokens):
            raise ValueError(
                f"the maps to inject have {injected.shape[-1]} tokens in {self.name}, the latent has {tokens}; "
                "record them on a latent of the same size"
            )
        output = _attend(attn, hidden_states[: self.batch], injected)
        if len(hidden_states) == self.batch:
            return output
        rest = self.original(attn, hidden_states[self.batch :], None, attention_mask, temb, **kwargs)
        return torch.cat([output, rest])

    def _joint(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Joint attention of the image, which comes first, and the text (SD3)."""
        image, text = self.original(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        own, said = hidden_states[: self.batch], encoder_hidden_states[: self.batch]
        q, k = (
            _normed(rearrange(project(own), HEADS, heads=attn.heads), norm)
            for project, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k))
        )
        k_text = _normed(rearrange(attn.add_k_proj(said), HEADS, heads=attn.heads), attn.norm_added_k)
        size = grid_size(q.shape[2], self.size)
        cells = mask_grid(self.size)
        grid = cells if self.control.mean else size
        if self.control.record("self", grid[0] * grid[1]):
            queries, keys = averaged(q, size, grid), averaged(k, size, grid)
            self.maps.self_attention[self.name] = probabilities(queries, keys, self.control.mean)
            self.maps.sizes[self.name] = grid
        if self.control.record("cross", cells[0] * cells[1]):
            name = f"{self.name}.text"
            self.maps.cross_attention[name] = probabilities(averaged(q, size, cells), k_text, self.control.mean)
            self.maps.sizes[name] = cells
        given = self.control.inject.self_attention.get(self.name) if self.control.inject is not None else None
        if given is None:
            return image, text
        v, v_text = (
            rearrange(project(t), HEADS, heads=attn.heads) for project, t in ((attn.to_v, own), (attn.add_v_proj, said))
        )
        values, keys = torch.cat([v, v_text], 2), torch.cat([k, k_text], 2)
        out = redirected(q, keys, values, given.to(q.device), slice(0, q.shape[2]))
        out = attn.to_out[0](rearrange(out, "b heads tokens d -> b tokens (heads d)").to(image))
        return torch.cat([out, image[self.batch :]]), text


def _normed(t: Tensor, norm: nn.Module | None) -> Tensor:
    return t if norm is None else norm(t)


def _attend(attn: Attention, hidden_states: Tensor, probabilities: Tensor) -> Tensor:
    """The layer's output under given probabilities (B or 1, heads, N, N)."""
    value = attn.head_to_batch_dim(attn.to_v(hidden_states))
    probabilities = probabilities.to(value).expand(len(hidden_states), -1, -1, -1).flatten(0, 1)
    output = attn.batch_to_head_dim(probabilities @ value)
    return attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor
