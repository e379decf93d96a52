"""Attacks by convolution: Gaussian blur, mean filter, sharpening. Edges are replicated."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import register

__all__ = ["gaussian_blur"]

BLUR_RADIUS = 3.0  # half-width of the Gaussian kernel in sigmas


@register("blur", "Gaussian blur.", default=1.0, low=0.0, high=10.0, unit="sigma in pixels")
def blur(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return gaussian_blur(images, strength)


@register("mean", "Mean filter over a square window.", default=3, low=1, high=15, unit="side in pixels, odd")
def mean(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    radius = int(strength) // 2
    return _separable(images, torch.full((2 * radius + 1,), 1 / (2 * radius + 1)))


@register(
    "sharpness",
    "Multiply the distance from a smoothed picture: above 1 sharpens, below 1 softens.",
    default=2.0,
    low=0.0,
    high=5.0,
    unit="factor",
)
def sharpness(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    # The 3x3 mean with the centre counted five times (Pillow's SMOOTH): 13 parts, 9 of them the mean's.
    smooth = (9 * _separable(images, torch.full((3,), 1 / 3)) + 4 * images) / 13
    return smooth + strength * (images - smooth)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) by a Gaussian of `sigma` pixels, cut at three sigmas; edges replicated."""
    if sigma <= 0:
        return images
    radius = max(1, math.ceil(BLUR_RADIUS * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    return _separable(images, kernel / kernel.sum())


def _separable(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve rows and columns with an odd kernel."""
    channels, radius = images.shape[1], len(kernel) // 2
    kernel = kernel.to(images)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)
