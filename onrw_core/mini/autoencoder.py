"""Autoencoder of the embedded model: f = 8, 16 channels, deterministic, all convolutions at 1/4 and 1/8 resolution.

It is the sum of a linear transform of 8x8 patches (initialised with the principal components of 8x8 colour patches, so
that training starts at the quality of the best linear code) and of convolutional networks, which add a non-linear
correction. Input is pixel-unshuffled and output pixel-shuffled, so no convolution runs at full resolution;
on a CPU this is an order of magnitude faster than the usual KL autoencoder, forward and backward.

The latent is unbounded, smooth and scaled to unit variance over the training photos (``latent_scale``), so the scale
factor outside of this module is 1.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import Conv2d, Module, PixelShuffle, PixelUnshuffle, Sequential, SiLU
from torch.nn import functional as F

from .layers import zeroed

__all__ = ["AutoencoderConfig", "PatchAutoencoder", "principal_patches"]

AutoencoderConfig = dict[str, int]
FACTOR = 8
PATCH_VALUES = 3 * FACTOR * FACTOR
# Exponent of the standard deviation kept in the latent: 1 keeps the principal components' own spread (the fine ones
# are smaller than the least diffusion noise), 0 whitens (fine texture weighs as much as structure).
SPREAD_POWER = 0.5


class ResidualBlock(Module):
    """x + conv(silu(conv(silu(x)))), without normalisation, starting as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        zeroed(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PatchAutoencoder(Module):
    """Image (B,3,H,W) in [0,1] <-> latent (B,C,H/8,W/8) of unit variance.

    Args:
        latent_channels: channels C of the latent.
        stem: channels of the encoder at 1/4 resolution.
        encoder: channels of the encoder at 1/8 resolution.
        decoder: channels of the decoder at 1/8 resolution.
        head: channels of the decoder at 1/4 resolution.
        encoder_blocks, decoder_blocks, head_blocks: residual blocks at these places.
    """

    def __init__(
        self,
        latent_channels: int = 16,
        stem: int = 96,
        encoder: int = 128,
        decoder: int = 128,
        head: int = 64,
        encoder_blocks: int = 3,
        decoder_blocks: int = 3,
        head_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.config: AutoencoderConfig = {
            "latent_channels": latent_channels, "stem": stem, "encoder": encoder, "decoder": decoder, "head": head,
            "encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks, "head_blocks": head_blocks,
        }  # fmt: skip
        self.linear_encoder = Conv2d(PATCH_VALUES, latent_channels, 1)
        self.encoder_net = Sequential(
            PixelUnshuffle(4),
            Conv2d(48, stem, 3, padding=1),
            SiLU(),
            Conv2d(stem, encoder, 3, stride=2, padding=1),
            *[ResidualBlock(encoder) for _ in range(encoder_blocks)],
            SiLU(),
            Conv2d(encoder, latent_channels, 3, padding=1),
        )
        self.linear_decoder = Conv2d(latent_channels, PATCH_VALUES, 1)
        self.decoder_net = Sequential(
            Conv2d(latent_channels, decoder, 3, padding=1),
            *[ResidualBlock(decoder) for _ in range(decoder_blocks)],
            Conv2d(decoder, head * 4, 3, padding=1),
            PixelShuffle(2),
            *[ResidualBlock(head) for _ in range(head_blocks)],
            SiLU(),
            Conv2d(head, 48, 3, padding=1),
            PixelShuffle(4),
        )
        for net in (self.encoder_net, self.decoder_net):
            zeroed([module for module in net if isinstance(module, Conv2d)][-1])
        self.latent_scale: Tensor
        self.register_buffer("latent_scale", torch.ones(()))

    @torch.no_grad()
    def initialise_linear(self, basis: Tensor, mean: Tensor, deviation: Tensor) -> None:
        """Set the linear transforms to a principal-component code, see `principal_patches`."""
        gain = deviation ** (SPREAD_POWER - 1.0)
        gain = gain / (deviation * gain).square().mean().sqrt()
        analysis = basis * gain[:, None]
        synthesis = (basis / gain[:, None]).T
        self.linear_encoder.load_state_dict({"weight": analysis[:, :, None, None], "bias": -(analysis @ mean)})
        self.linear_decoder.load_state_dict({"weight": synthesis[:, :, None, None], "bias": mean})

    def encode(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1], H and W multiples of 8 -> latent (B,C,H/8,W/8)."""
        if images.shape[-1] % FACTOR or images.shape[-2] % FACTOR:
            raise ValueError(
                f"image size {tuple(images.shape[-2:])} is not a multiple of {FACTOR}; resize or crop it first"
            )
        x = images * 2.0 - 1.0
        latent = self.linear_encoder(F.pixel_unshuffle(x, FACTOR)) + self.encoder_net(x)
        return latent * self.latent_scale

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B,C,h,w) -> images (B,3,8h,8w), about [0,1], not clamped."""
        latent = latent / self.latent_scale
        x = F.pixel_shuffle(self.linear_decoder(latent), FACTOR) + self.decoder_net(latent)
        return x * 0.5 + 0.5

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


def principal_patches(images: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of the 8x8 colour patches of images (B,3,H,W) in [0,1].

    Returns:
        basis (components, 192), mean (192,) and the components' standard deviations (components,), for values in
        [-1, 1] in the order of ``pixel_unshuffle``.
    """
    patches = rearrange(F.pixel_unshuffle(images * 2.0 - 1.0, FACTOR), "b c h w -> (b h w) c").double()
    mean = patches.mean(0)
    centred = patches - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    basis = vectors[:, -components:].flip(1).T
    # A fixed sign, since that of an eigenvector depends on the linear algebra library.
    basis = basis * basis.sum(1, keepdim=True).sign().where(basis.sum(1, keepdim=True) != 0, torch.ones(()).double())
    deviation = variances[-components:].flip(0).clamp_min(1e-12).sqrt()
    return basis.float(), mean.float(), deviation.float()
