"""Attacks on the values of single pixels: brightness, contrast, gamma, saturation, hue."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..imaging.metrics import luminance
from ..imaging.rounding import LEVELS
from .base import Limits, register

__all__: list[str] = []

# RGB -> YIQ (NTSC, 1953): luminance and two colour axes; rotating these changes the hue.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))

_FACTOR: Limits = {"low": 0.0, "high": 4.0, "unit": "factor"}


@register("brightness", "Multiply all values; values above white are clipped.", default=1.5, **_FACTOR)
def brightness(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return images * strength


@register("contrast", "Multiply the distance from the mean luminance.", default=1.5, **_FACTOR)
def contrast(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return _blend(luminance(images).mean((-2, -1), keepdim=True), images, strength)


@register("saturation", "Multiply the distance from grey; 0 removes colour.", default=1.5, **_FACTOR)
def saturation(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return _blend(luminance(images), images, strength)


@register(
    "gamma",
    "Raise all values to a power; an exponent above 1 darkens the middle tones.",
    default=1.5,
    low=0.2,
    high=5.0,
    unit="exponent",
)
def gamma(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    # A power below 1 has an infinite derivative at 0: stay half an 8-bit level away from it.
    return images.clamp(0.5 / LEVELS, 1) ** strength


@register(
    "hue",
    "Rotate the colours about the grey axis.",
    default=20,
    low=-180,
    high=180,
    unit="degrees of the colour circle",
)
def hue(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64)
    cos, sin = math.cos(math.radians(strength)), math.sin(math.radians(strength))
    turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)
    matrix = (torch.linalg.inv(to_yiq) @ turn @ to_yiq).to(images)
    return torch.einsum("ij,bjhw->bihw", matrix, images)


def _blend(base: Tensor, images: Tensor, factor: float) -> Tensor:
    return base + factor * (images - base)
