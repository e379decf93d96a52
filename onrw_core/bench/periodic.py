"""Unmarked periodic pictures, which a detector of a periodic pilot could take for marked ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import parse

__all__ = ["KINDS", "periodic"]

KINDS = ("bricks", "fabric", "halftone", "screen", "jpeg")
LEAST, MOST = 4.0, 80.0  # periods in pixels; that of the pilot is 64
GRAIN = 0.02


def periodic(number: int, generator: torch.Generator, size: tuple[int, int] = (512, 640)) -> Tensor:
    """A picture of one of `KINDS` in turn, with a random period, angle and colour: (3, height, width) in [0, 1].

    Args:
        number: Chooses the kind.
        generator: Draws everything else.
        size: (height, width).
    """
    height, width = size
    draw = torch.rand(8, generator=generator).tolist()
    period = LEAST * (MOST / LEAST) ** draw[0]
    angle = 0.0 if draw[1] < 0.5 else math.pi * draw[1]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    u = (x * math.cos(angle) + y * math.sin(angle)) / period
    v = (y * math.cos(angle) - x * math.sin(angle)) / period
    shade = F.interpolate(torch.rand(1, 1, 4, 5, generator=generator), size=size, mode="bicubic")[0, 0].clamp(0, 1)
    kind = KINDS[number % len(KINDS)]
    if kind == "bricks":
        row = (2 * v).floor()
        joint = (((u + row / 2) % 1) < 0.1) | (((2 * v) % 1) < 0.2)
        plane = torch.where(joint, 0.8, 0.35 + 0.2 * shade)
    elif kind == "fabric":
        plane = 0.5 + 0.25 * (2 * math.pi * u).sin() * (0.5 + shade) + 0.2 * (2 * math.pi * (u + v)).sin().sign()
    elif kind == "halftone":
        dots = 0.5 + 0.25 * ((2 * math.pi * u).cos() + (2 * math.pi * v).cos())
        plane = (dots > shade).float()
    elif kind == "screen":
        plane = shade * (0.6 + 0.4 * (((u * 3) % 1) > 0.2).float() * ((v % 1) > 0.2))
    else:
        plane = 0.5 * shade + 0.25 + 0.1 * torch.randn(size, generator=generator)
    colour = 0.6 + 0.4 * torch.tensor(draw[2:5])
    image = plane * colour[:, None, None] + GRAIN * torch.randn(3, *size, generator=generator)
    image = image.clamp(0, 1)
    if kind == "jpeg":
        image = parse(f"jpeg={10 + round(40 * draw[5])}")(image[None], generator).images[0]
    return image
