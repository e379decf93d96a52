"""Filter attacks: Gaussian blur, mean filter, sharpening. Edges are replicated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..imaging.convolve import gaussian_blur, separable
from .base import register

__all__: list[str] = []


@register("blur", "Gaussian blur.", default=1.0, low=0.0, high=10.0, unit="sigma in pixels")
def blur(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return gaussian_blur(images, strength)


@register("mean", "Mean filter over a square window.", default=3, low=1, high=15, unit="side in pixels, odd")
def mean(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return separable(images, _box(2 * (int(strength) // 2) + 1))


@register(
    "sharpness",
    "Multiply the distance from a smoothed image: above 1 sharpens, below 1 blurs.",
    default=2.0,
    low=0.0,
    high=5.0,
    unit="factor",
)
def sharpness(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    # The 3x3 mean with the centre counted five times (Pillow's SMOOTH): weights of 9 and 4 of 13.
    smooth = (9 * separable(images, _box(3)) + 4 * images) / 13
    return smooth + strength * (images - smooth)


def _box(side: int) -> list[float]:
    return [1 / side] * side
