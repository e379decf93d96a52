"""Recording and replacing attention probabilities in a diffusers UNet, for the time of one call.

A probe takes the place of each attention layer's processor and gives way to it again afterwards. To record, it lets
the original processor make the output, to the last bit, and computes the probabilities beside it. To inject, it makes
the output of the positive branch from the given probabilities. Probes put maps into a fresh record for each call, so
that a call is a pure function, and may run twice under `torch.utils.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import grid_size, probabilities
from ..model import AttentionControl, AttentionMaps
from . import ensure_torchvision

ensure_torchvision()

from diffusers.models.attention_processor import Attention  # noqa: E402  (needs torchvision to import)

__all__ = ["controlled"]


@contextmanager
def controlled(
    unet: nn.Module, control: AttentionControl | None, batch: int, size: tuple[int, int]
) -> Iterator[AttentionMaps]:
    """Put `control` into effect on `unet`.

    Args:
        unet: The network.
        control: What to record or replace; None for neither.
        batch: Rows of the positive branch, the first of the network's batch.
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
    """Stands in for one layer's processor."""

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
    ) -> Tensor:
        tokens = hidden_states.shape[1]
        cross = encoder_hidden_states is not None
        if self.control.record("cross" if cross else "self", tokens):
            context = encoder_hidden_states if cross else hidden_states
            query = attn.to_q(hidden_states[: self.batch]).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            key = attn.to_k(context[: self.batch]).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
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


def _attend(attn: Attention, hidden_states: Tensor, probabilities: Tensor) -> Tensor:
    """The layer's output under given probabilities (B or 1, heads, N, N)."""
    value = attn.head_to_batch_dim(attn.to_v(hidden_states))
    probabilities = probabilities.to(value).expand(len(hidden_states), -1, -1, -1).flatten(0, 1)
    output = attn.batch_to_head_dim(probabilities @ value)
    return attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor
