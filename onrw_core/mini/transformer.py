"""Transformer blocks of the embedded model's UNet, with attention that can be recorded or replaced.

Layers are named as in latent diffusion (Rombach et al. 2022). A call of the UNet takes an :class:`AttentionProbe`,
which may record or replace the probabilities of any layer; recording does not change how the output is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import GroupNorm, Identity, LayerNorm, Linear, Module, ModuleList, Sequential
from torch.nn import functional as F

from ..diffusion.attention import probabilities
from ..diffusion.model import AttentionControl, AttentionMaps
from .layers import zeroed

__all__ = ["NORM_GROUPS", "Attention", "AttentionProbe", "SpatialTransformer"]

NORM_GROUPS = 32
FEED_FORWARD_MULTIPLE = 4


@dataclass
class AttentionProbe:
    """Records or replaces attention probabilities during one call of the UNet.

    Attributes:
        control: Maps to record and maps to inject.
        rows: Batch rows of the first conditioning; only these are recorded and replaced.
        maps: The recorded maps.
    """

    control: AttentionControl
    rows: int
    maps: AttentionMaps = field(default_factory=AttentionMaps)

    def attend(self, name: str, kind: str, size: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q, k, v (B, heads, N|M, d) -> (B, heads, N, d)."""
        out = F.scaled_dot_product_attention(q, k, v)
        injected = None
        if kind == "self" and self.control.inject is not None:
            injected = self.control.inject.self_attention.get(name)
        if self.control.record(kind, q.shape[2]):
            maps = self.maps.self_attention if kind == "self" else self.maps.cross_attention
            maps[name] = self._recorded(q[: self.rows], k[: self.rows], injected)
            self.maps.sizes[name] = size
        if injected is not None:
            if injected.shape[1:] != (q.shape[1], q.shape[2], k.shape[2]):
                raise ValueError(
                    f"injected map of {name} has shape {tuple(injected.shape)}, the layer needs "
                    f"(B, {q.shape[1]}, {q.shape[2]}, {k.shape[2]}); record it at the same latent size"
                )
            replaced = injected.to(v.dtype).to(v.device) @ v[: self.rows]
            out = torch.cat([replaced, out[self.rows :]])
        return out

    def _recorded(self, q: Tensor, k: Tensor, injected: Tensor | None) -> Tensor:
        if injected is None:
            return probabilities(q, k, self.control.mean)
        return injected.mean(1, keepdim=True) if self.control.mean else injected


class Attention(Module):
    """Multi-head attention of tokens (B,N,C) to themselves or to a context (B,M,K)."""

    def __init__(self, channels: int, context: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context, channels, bias=False)
        self.to_v = Linear(context, channels, bias=False)
        self.to_out = Sequential(Linear(channels, channels))
        self.layer = ""

    def forward(self, x: Tensor, context: Tensor | None, size: tuple[int, int], probe: AttentionProbe | None) -> Tensor:
        source = x if context is None else context
        q, k, v = (
            rearrange(y, "b tokens (heads d) -> b heads tokens d", heads=self.heads)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        if probe is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = probe.attend(self.layer, "self" if context is None else "cross", size, q, k, v)
        return self.to_out(rearrange(out, "b heads tokens d -> b tokens (heads d)"))


class GatedProjection(Module):
    """Linear layer with a GELU gate (Shazeer 2020)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.proj = Linear(channels, out * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(Module):
    """Gated feed-forward layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels * FEED_FORWARD_MULTIPLE
        self.net = Sequential(GatedProjection(channels, inner), Identity(), Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(Module):
    """Self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, channels: int, context: int, head_channels: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, head_channels)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context, head_channels)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor, size: tuple[int, int], probe: AttentionProbe | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), None, size, probe)
        x = x + self.attn2(self.norm2(x), context, size, probe)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(Module):
    """A transformer block on the positions of a feature map."""

    def __init__(self, channels: int, context: int, head_channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(NORM_GROUPS, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = ModuleList([TransformerBlock(channels, context, head_channels)])
        self.proj_out = zeroed(Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, probe: AttentionProbe | None) -> Tensor:
        size = (x.shape[2], x.shape[3])
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.transformer_blocks:
            tokens = block(tokens, context, size, probe)
        return x + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=size[0], w=size[1])
