"""The two colour projections that a watermark is read from: a linear discriminant, and luminance.

Watermarks change pixels along one colour c (`metrics.LUMA_COLOUR`). As long as the colours have not been changed, the
noise of the watermark is the image itself, whose variance differs from colour to colour. With C the covariance of the
image's own colours,

    discriminant projection = v . rgb,   v = C^-1 c / (c . C^-1 c),

has the least variance of the image for the same amplitude of the watermark (Fisher's linear discriminant). JPEG,
conversion to grey and shifts of hue remove its advantage; luminance remains. It does not depend on the key.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...imaging.metrics import LUMA, LUMA_COLOUR

__all__ = ["projections"]

BLOCK = 4  # pixels; differences between such blocks lie in the watermark's band
ROUNDING = 1 / 255  # differences of this size and below count less
LEAST = 1e-4  # of a colour's share in the covariance: what rounding and compression leave in every colour


def projections(images: Tensor) -> Tensor:
    """The discriminant projection and the luminance of one image.

    Args:
        images: (1, 3, H, W) in [0, 1].

    Returns:
        (2, 1, H, W); the watermark has the same amplitude in both. Luminance alone, (1, 1, H, W), where an image is too
        small to estimate its covariance.
    """
    directions = [torch.tensor(LUMA)]
    if min(images.shape[-2:]) >= 4 * BLOCK:
        directions.insert(0, _discriminant(images))
    pixels = rearrange(images, "1 c h w -> c (h w)")
    projected = torch.stack(directions).to(pixels) @ pixels
    return rearrange(projected, "p (h w) -> p 1 h w", h=images.shape[-2])


def _discriminant(images: Tensor) -> Tensor:
    """v, (3,)."""
    means = F.avg_pool2d(images, BLOCK)
    across, down = means.diff(dim=-1).flatten(2), means.diff(dim=-2).flatten(2)
    changes = torch.cat([across, down], -1)[0].double()
    # Each difference has about the same weight: few edges would outweigh the texture around most of a watermark.
    changes = changes / (changes.square().sum(0) + ROUNDING**2).sqrt()
    covariance = changes @ changes.T / changes.shape[1] + LEAST * torch.eye(3, dtype=torch.float64)
    colour = torch.tensor(LUMA_COLOUR, dtype=torch.float64)
    direction = torch.linalg.solve(covariance, colour)
    return (direction / (direction @ colour)).float()
