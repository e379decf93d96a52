"""Text-conditional UNet of the embedded model, in the layout of latent diffusion (Rombach et al. 2022).

Structure and parameter names are those of the ``UNetModel`` that latent diffusion introduced and ComfyUI uses, so the
state dict loads there as it is (``UNetConfig.comfy()`` gives the matching ``unet_config``). What is different is the
seam for attention: a call takes an :class:`AttentionProbe`, which may record the probabilities of any attention layer
or put others in their place. The output is computed the same way whether or not anything is recorded.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import AttentionControl, AttentionMaps

__all__ = ["AttentionProbe", "UNet", "UNetConfig"]

NORM_GROUPS = 32
FEED_FORWARD_MULTIPLE = 4
TIMESTEP_PERIOD = 10000.0


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet.

    Attributes:
        channels: Latent channels, in and out.
        width: Channels of the first level, a multiple of 32.
        multiples: Channels of each level as a multiple of `width`; each level halves the resolution.
        blocks: Residual blocks per level.
        attention: Whether each level has a transformer after its residual blocks (the middle always has).
        head_channels: Channels per attention head.
        context: Width of the text tokens.
    """

    channels: int = 16
    width: int = 64
    multiples: tuple[int, ...] = (1, 2, 3)
    blocks: int = 1
    attention: tuple[bool, ...] = (False, True, True)
    head_channels: int = 32
    context: int = 256

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetConfig:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def comfy(self) -> dict[str, Any]:
        """The ``unet_config`` with which ComfyUI's ``UNetModel`` has this structure."""
        levels = len(self.multiples)
        return {
            "image_size": 32,
            "in_channels": self.channels,
            "out_channels": self.channels,
            "model_channels": self.width,
            "num_res_blocks": [self.blocks] * levels,
            "channel_mult": list(self.multiples),
            "num_heads": -1,
            "num_head_channels": self.head_channels,
            "use_spatial_transformer": True,
            "transformer_depth": [int(here) for here in self.attention for _ in range(self.blocks)],
            "transformer_depth_output": [int(here) for here in self.attention for _ in range(self.blocks + 1)],
            "transformer_depth_middle": 1,
            "use_linear_in_transformer": True,
            "context_dim": self.context,
            "adm_in_channels": None,
            "use_temporal_attention": False,
            "use_temporal_resblock": False,
            "legacy": False,
        }


@dataclass
class AttentionProbe:
    """Records or replaces attention probabilities during one call of the UNet.

    Attributes:
        control: What to record and what to inject.
        rows: Batch rows of the first conditioning; only these are recorded and replaced.
        maps: What was recorded.
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
            maps[name] = injected if injected is not None else probabilities(q[: self.rows], k[: self.rows])
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


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) in float32."""
    return (q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Cosines and sines of timesteps (B,), which may be fractional -> (B, width)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(TIMESTEP_PERIOD) * exponents)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two convolutions with the timestep embedding added between."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out))
        last = nn.Conv2d(out, out, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out_layers = nn.Sequential(nn.GroupNorm(NORM_GROUPS, out), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Multi-head attention of tokens (B,N,C) to themselves or to a context (B,M,K)."""

    def __init__(self, channels: int, context: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))
        self.layer = ""

    def forward(self, x: Tensor, context: Tensor | None, size: tuple[int, int], probe: AttentionProbe | None) -> Tensor:
        source = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        if probe is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = probe.attend(self.layer, "self" if context is None else "cross", size, q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GatedProjection(nn.Module):
    """Linear layer with a GELU gate (Shazeer 2020)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, out * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels * FEED_FORWARD_MULTIPLE
        self.net = nn.Sequential(GatedProjection(channels, inner), nn.Identity(), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, channels: int, context: int, head_channels: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, head_channels)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context, head_channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor, size: tuple[int, int], probe: AttentionProbe | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), None, size, probe)
        x = x + self.attn2(self.norm2(x), context, size, probe)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block on the positions of a feature map."""

    def __init__(self, channels: int, context: int, head_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context, head_channels)])
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: Tensor, probe: AttentionProbe | None) -> Tensor:
        size = (x.shape[2], x.shape[3])
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context, size, probe)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, size)


class Downsample(nn.Module):
    """Convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour to the size of the skip connection that comes next, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class UNet(nn.Module):
    """Latent (B,C,h,w), timesteps (B,) and text tokens (B,T,K) -> the network's raw output (B,C,h,w)."""

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config = config
        width, levels = config.width, len(config.multiples)
        embedding = width * 4
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def transformer(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, config.context, config.head_channels)

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(config.channels, width, 3, padding=1)])])
        skips, channels = [width], width
        for level, multiple in enumerate(config.multiples):
            for _ in range(config.blocks):
                layers: list[nn.Module] = [ResBlock(channels, width * multiple, embedding)]
                channels = width * multiple
                if config.attention[level]:
                    layers.append(transformer(channels))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(channels)
            if level < levels - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)

        self.middle_block = nn.ModuleList(
            [ResBlock(channels, channels, embedding), transformer(channels), ResBlock(channels, channels, embedding)]
        )
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(config.multiples))):
            for block in range(config.blocks + 1):
                layers = [ResBlock(channels + skips.pop(), width * multiple, embedding)]
                channels = width * multiple
                if config.attention[level]:
                    layers.append(transformer(channels))
                if level and block == config.blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(nn.ModuleList(layers))
        last = nn.Conv2d(width, config.channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.GroupNorm(NORM_GROUPS, channels), nn.SiLU(), last)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.layer = name.replace(".transformer_blocks", "")

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, probe: AttentionProbe | None = None) -> Tensor:
        embedding = self.time_embed(timestep_embedding(timesteps, self.config.width).to(x.dtype))

        def run(layers: nn.ModuleList, h: Tensor, size: tuple[int, int] | None = None) -> Tensor:
            for layer in layers:
                if isinstance(layer, ResBlock):
                    h = layer(h, embedding)
                elif isinstance(layer, SpatialTransformer):
                    h = layer(h, context, probe)
                elif isinstance(layer, Upsample):
                    h = layer(h, size)
                else:
                    h = layer(h)
            return h

        h, skips = x, []
        for layers in self.input_blocks:
            h = run(layers, h)
            skips.append(h)
        h = run(self.middle_block, h)
        for layers in self.output_blocks:
            skip = skips.pop()
            size = (skips[-1].shape[2], skips[-1].shape[3]) if skips else None
            h = run(layers, torch.cat([h, skip], dim=1), size)
        return self.out(h)
