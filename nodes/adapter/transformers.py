"""Attention of transformers (SD3, Flux, Qwen-Image, ...): recorded without changing any bit of the output, or replaced.

ComfyUI's attention override gets queries, keys and values, but not the block they belong to, so the blocks tell it when
they are called. In joint attention the text tokens stand before or after those of the image. Queries and keys are
averaged over cells of 32 pixels first, because a map of all tokens takes 64 MiB a block at 1024 px; injection needs all
tokens.

Where the attention cannot be read, the self-similarity of the blocks' outputs stands for self-attention: row i is the
softmax over j of the cosine of the features at the places i and j.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...onrw_core.diffusion.attention import averaged, mask_grid, probabilities, redirected
from ...onrw_core.diffusion.model import AttentionControl, AttentionMaps
from .attention import keep
from .families import AFTER, APART, START, Layout

__all__ = ["Call", "controlled"]

BLOCKS = 8
"""Largest number of blocks that are read; they are spread evenly over the network."""
TEMPERATURE = 0.1
"""Of the softmax over cosines of features."""
OVERRIDE = "optimized_attention_override"
HEADS = "b tokens (heads d) -> b heads tokens d"


@dataclass(frozen=True)
class Call:
    """A call of a transformer.

    Attributes:
        network: The transformer.
        layout: Of the network.
        shape: Of the latents, (B, C, h, w).
        tokens: Tokens of the first conditioning.
        references: Latents of reference images, whose tokens follow those of the image.
        factor: Pixels per latent position and side.
    """

    network: Any
    layout: Layout
    shape: tuple[int, ...]
    tokens: int
    references: Sequence[Tensor]
    factor: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the image's tokens."""
        return self._patches(self.shape)

    @property
    def positions(self) -> int:
        """Tokens of the image, padded (Z-Image), and of the reference images."""
        padded = getattr(self.network, "pad_tokens_multiple", None) or 1
        behind = sum(math.prod(self._patches(image.shape)) for image in self.references)
        return -(-math.prod(self.size) // padded) * padded + behind

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the cells over which the tokens are averaged."""
        rows, columns = mask_grid((self.shape[-2], self.shape[-1]), self.factor)
        height, width = self.size
        return min(height, rows), min(width, columns)

    def _patches(self, shape: Sequence[int]) -> tuple[int, int]:
        patch = self.network.patch_size
        patch = patch if isinstance(patch, int) else patch[-1]
        return -(-shape[-2] // patch), -(-shape[-1] // patch)


@contextmanager
def controlled(
    model_options: dict[str, Any], call: Call, control: AttentionControl, maps: AttentionMaps
) -> Iterator[dict[str, Any]]:
    """A context in which a call of a network records attention into `maps` and injects attention, as `control` defines.

    Args:
        model_options: The sampling options to copy; they have an attention override.
        call: The call.
        control: What to record and what to replace.
        maps: Filled in during the call, with the rows of the first conditioning.

    Yields:
        The options to sample with.
    """
    blocks = [
        (f"{name}.{i}", block) for name in call.layout.blocks for i, block in enumerate(getattr(call.network, name))
    ]
    chosen = blocks[:: -(-len(blocks) // BLOCKS)]
    reader = _Reader(call, control, maps)
    transformer = dict(model_options["transformer_options"])
    transformer[OVERRIDE] = reader.around(transformer[OVERRIDE])
    options = {**model_options, "transformer_options": transformer}
    with reader.watching(chosen):
        yield options


class _Reader:
    """Reads the attention of one call of a network; see `controlled`."""

    def __init__(self, call: Call, control: AttentionControl, maps: AttentionMaps) -> None:
        self.network, self.layout, self.control, self.maps = call.network, call.layout, control, weakref.ref(maps)
        self.batch, self.size, self.tokens = call.shape[0], call.size, call.tokens
        self.positions, self.grid = call.positions, call.grid
        self.block: str | None = None
        self.calls = 0
        self.evaluated: list[int] = []

    @contextmanager
    def watching(self, blocks: list[tuple[str, nn.Module]]) -> Iterator[None]:
        """A context in which blocks tell their names when they run."""
        own = {block: block.__dict__.get("forward") for _, block in blocks}
        hooks = []
        try:
            if not self.layout.readable:
                hooks.append(self.network.register_forward_pre_hook(self._evaluated, with_kwargs=True))
            for name, block in blocks:
                if self.layout.readable:
                    block.forward = self._named(name, block.forward)
                else:
                    hooks.append(block.register_forward_hook(self._features(name)))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for block, forward in own.items():
                if forward is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = forward

    def _named(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.block, self.calls = name, 0
            try:
                return forward(*args, **kwargs)
            finally:
                self.block = None

        return call

    def around(self, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """An attention override that computes `inner`, and records or replaces the attention of named blocks."""

        def attention(function: Callable, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            out = inner(function, q, k, v, *args, **kwargs)
            name, call = self.block, self.calls
            self.calls += 1
            evaluated = kwargs["transformer_options"]["cond_or_uncond"]
            if name is None or 0 not in evaluated:
                return out
            start = self.batch * evaluated.index(0)
            rows = slice(start, start + self.batch)
            heads = kwargs["heads"] if "heads" in kwargs else args[0]
            if not kwargs.get("skip_reshape"):
                q, k, v = (rearrange(t.flatten(2), HEADS, heads=heads) for t in (q, k, v))
            q, k, v = (_all_heads(t[rows], heads) for t in (q, k, v))
            place = self._place(call, q.shape[2], k.shape[2])
            if place is None:
                return out
            image, text = place
            layer = name if not call else f"{name}.{call}"
            self._record(layer, q, k, image, text)
            injected = self.control.inject.self_attention.get(layer) if self.control.inject is not None else None
            if injected is None or image is None:
                return out
            mask = kwargs.get("mask", args[1] if len(args) > 1 else None)
            mask = mask[rows] if mask is not None and len(mask) > 1 else mask
            replaced = redirected(q, k, v, injected.to(q.device), image, mask)
            if not kwargs.get("skip_output_reshape"):
                replaced = rearrange(replaced, "b heads tokens d -> b tokens (heads d)")
            own = out[rows].clone()
            own[..., image, :] = replaced.to(own)
            return torch.cat([out[:start], own, out[rows.stop :]])

        return attention

    def _place(self, call: int, queries: int, keys: int) -> tuple[slice | None, slice | None] | None:
        """Where the image and the text are among the keys, or None for a call that does not see the whole image."""
        count = self.size[0] * self.size[1]
        image = slice(0, count)
        if self.layout.text == APART:
            if queries != count:
                return None
            return (image, None) if call == 0 and keys == count else (None, slice(0, min(keys, self.tokens)))
        if call and queries == self.positions:
            return image, None  # SD3.5: a second attention of the image alone
        further = queries - self.positions
        if further < 0 or keys != queries:
            return None
        first = self.positions if self.layout.text == AFTER else 0
        shift = 0 if self.layout.aligned == START else further - self.tokens
        text = slice(first + shift, first + min(shift + self.tokens, further))
        return (image if self.layout.text == AFTER else slice(further, further + count)), text

    def _record(self, layer: str, q: Tensor, k: Tensor, image: slice | None, text: slice | None) -> None:
        where = image if image is not None else slice(0, self.size[0] * self.size[1])
        cells = self.grid[0] * self.grid[1]
        if image is not None:
            grid = self.size if not self.control.mean else self.grid
            if self.control.record("self", grid[0] * grid[1]):
                queries, keys = (averaged(t[:, :, where], self.size, grid) for t in (q, k))
                keep(self.maps, "self", layer, probabilities(queries, keys, self.control.mean), grid)
        if text is not None and text.stop > text.start and self.control.record("cross", cells):
            queries = averaged(q[:, :, where], self.size, self.grid)
            found = probabilities(queries, k[:, :, text], self.control.mean)
            keep(self.maps, "cross", f"{layer}.text", found, self.grid)

    def _evaluated(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.evaluated = kwargs["transformer_options"]["cond_or_uncond"]

    def _features(self, name: str) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple, out: Any) -> None:
            if 0 not in self.evaluated or not self.control.record("self", self.grid[0] * self.grid[1]):
                return
            start = self.batch * self.evaluated.index(0)
            tokens = out[0] if isinstance(out, tuple) else out
            tokens = tokens[start : start + self.batch, None, : self.size[0] * self.size[1]]
            places = F.normalize(averaged(tokens.float(), self.size, self.grid), dim=-1)
            similar = (places @ places.transpose(-1, -2) / TEMPERATURE).softmax(-1)
            keep(self.maps, "self", f"{name}.features", similar, self.grid)

        return hook


def _all_heads(t: Tensor, heads: int) -> Tensor:
    """(B, heads, N, d) of grouped keys or values, whose heads serve several of the queries'."""
    return t if t.shape[1] == heads else t.repeat_interleave(heads // t.shape[1], 1)
