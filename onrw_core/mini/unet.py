"""Text-conditional UNet of the embedded model, in the layout of latent diffusion (Rombach et al. 2022).

Structure and parameter names are those of the ``UNetModel`` that latent diffusion introduced and ComfyUI uses, so the
state dict loads there as it is (``UNetConfig.comfy()`` gives the matching ``unet_config``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d, GroupNorm, Identity, Linear, Module, ModuleList, Sequential, SiLU
from torch.nn import functional as F

from .layers import zeroed
from .transformer import NORM_GROUPS, Attention, AttentionProbe, SpatialTransformer

__all__ = ["UNet", "UNetConfig"]

TIMESTEP_PERIOD = 10000.0


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet.

    Attributes:
        channels: Latent channels, in and out.
        width: Channels of the first level, a multiple of 32.
        multiples: Channels of each level as a multiple of `width`; each level halves the resolution.
        blocks: Residual blocks per level.
        attention: Whether each level has a transformer after its residual blocks (the middle always has one).
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
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

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


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Cosines and sines of timesteps (B,), which may be fractional -> (B, width)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(TIMESTEP_PERIOD) * exponents)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(Module):
    """Two convolutions with the timestep embedding added between."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = Sequential(GroupNorm(NORM_GROUPS, channels), SiLU(), Conv2d(channels, out, 3, padding=1))
        self.emb_layers = Sequential(SiLU(), Linear(embedding, out))
        last = zeroed(Conv2d(out, out, 3, padding=1))
        self.out_layers = Sequential(GroupNorm(NORM_GROUPS, out), SiLU(), Identity(), last)
        self.skip_connection = Identity() if channels == out else Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(Module):
    """Convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(Module):
    """Nearest neighbour to the size of the skip connection that comes next, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class UNet(Module):
    """Latent (B,C,h,w), timesteps (B,) and text tokens (B,T,K) -> the network's raw output (B,C,h,w)."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        config = UNetConfig() if config is None else config
        self.config = config
        width, levels = config.width, len(config.multiples)
        embedding = width * 4
        self.time_embed = Sequential(Linear(width, embedding), SiLU(), Linear(embedding, embedding))

        def transformer(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, config.context, config.head_channels)

        self.input_blocks = ModuleList([ModuleList([Conv2d(config.channels, width, 3, padding=1)])])
        skips, channels = [width], width
        for level, multiple in enumerate(config.multiples):
            for _ in range(config.blocks):
                layers: list[Module] = [ResBlock(channels, width * multiple, embedding)]
                channels = width * multiple
                if config.attention[level]:
                    layers.append(transformer(channels))
                self.input_blocks.append(ModuleList(layers))
                skips.append(channels)
            if level < levels - 1:
                self.input_blocks.append(ModuleList([Downsample(channels)]))
                skips.append(channels)

        self.middle_block = ModuleList(
            [ResBlock(channels, channels, embedding), transformer(channels), ResBlock(channels, channels, embedding)]
        )
        self.output_blocks = ModuleList()
        for level, multiple in reversed(list(enumerate(config.multiples))):
            for block in range(config.blocks + 1):
                layers = [ResBlock(channels + skips.pop(), width * multiple, embedding)]
                channels = width * multiple
                if config.attention[level]:
                    layers.append(transformer(channels))
                if level and block == config.blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(ModuleList(layers))
        last = zeroed(Conv2d(width, config.channels, 3, padding=1))
        self.out = Sequential(GroupNorm(NORM_GROUPS, channels), SiLU(), last)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.layer = name.replace(".transformer_blocks", "")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, probe: AttentionProbe | None = None) -> Tensor:
        embedding = self.time_embed(timestep_embedding(timesteps, self.config.width).to(x.dtype))

        def run(layers: Iterable[Module], h: Tensor, size: tuple[int, int] | None = None) -> Tensor:
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
            h = run(layers.children(), h)
            skips.append(h)
        h = run(self.middle_block, h)
        for layers in self.output_blocks:
            skip = skips.pop()
            size = (skips[-1].shape[2], skips[-1].shape[3]) if skips else None
            h = run(layers.children(), torch.cat([h, skip], dim=1), size)
        return self.out(h)
