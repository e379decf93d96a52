"""Where the mark is optimised: in the noise, in the latent, or in the pixels.

The optimisation asks for a diffusion model and an autoencoder. A model whose denoised latent is its input makes the
ODE stand still, dx/dsigma = (x - x) / sigma = 0, so that noise and latent are the same: the latent space. With an
autoencoder that is a change of scale besides, it is the pixel space. Extractor, losses, attacks and composition stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model import AttentionControl, AttentionMaps, Autoencoder, Conditioning, DiffusionModel

__all__ = ["EMPTY", "SPACES", "PixelAutoencoder", "StillModel"]

SPACES = ("noise", "latent", "pixel")
EMPTY = Conditioning(torch.zeros(1, 1, 1))
SIGMA_RANGE = (0.0292, 14.6, 1000)  # of Stable Diffusion's training levels
PIXEL_SCALE = 4.0  # photographs vary by about a quarter of the range: unit variance


class StillModel(DiffusionModel):
    """Believes that every latent is clean."""

    name = "still"

    def __init__(self) -> None:
        low, high, count = SIGMA_RANGE
        self.sigmas = torch.logspace(torch.tensor(low).log10(), torch.tensor(high).log10(), count)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        conditionings: Sequence[Conditioning],
        control: AttentionControl | None = None,
    ) -> tuple[list[Tensor], AttentionMaps]:
        return [x for _ in conditionings], AttentionMaps()


class PixelAutoencoder(Autoencoder):
    """Pixels as a latent of unit variance."""

    name = "pixels"
    factor = 1
    channels = 3

    def encode(self, images: Tensor) -> Tensor:
        return (images - 0.5) * PIXEL_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        return latents / PIXEL_SCALE + 0.5
