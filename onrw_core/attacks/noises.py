"""Noise attacks, drawn on the CPU from the passed generator."""

from __future__ import annotations

import torch
from torch import Tensor

from ..imaging.rounding import LEVELS, straight_through
from .base import or_default, register

__all__: list[str] = []


@register("noise", "Add Gaussian noise.", default=0.05, low=0.0, high=0.5, unit="sigma, of the range 0-1")
def noise(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return images + strength * torch.randn(images.shape, generator=or_default(generator)).to(images)


@register("uniform", "Add uniform noise.", default=10, low=0, high=128, unit="greatest change, 8-bit levels")
def uniform(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    draw = torch.rand(images.shape, generator=or_default(generator)).to(images)
    return images + strength / LEVELS * (2 * draw - 1)


@register(
    "salt-pepper",
    "Set random pixels to black or white.",
    default=0.01,
    low=0.0,
    high=0.5,
    unit="fraction of the pixels",
)
def salt_pepper(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    draw = torch.rand(images[:, :1].shape, generator=or_default(generator)).to(images)
    colour = (draw < strength / 2).to(images)
    return torch.where(draw < strength, colour, images)


@register(
    "poisson",
    "Photon noise: each value is drawn from a Poisson distribution; fewer photons give more noise.",
    default=255,
    low=4,
    high=10000,
    unit="photons at white",
)
def poisson(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    rate = images.detach().clamp(0, 1).cpu() * strength
    draw = torch.poisson(rate, generator=or_default(generator)).to(images) / strength
    return straight_through(draw, images)
