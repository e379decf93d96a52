"""Geometric attacks: crop, rotation, resize, aspect, flip, perspective.

Each returns the exact homography from received to input coordinates (see `imaging.geometry`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.geometry import Geometry, resample
from .base import Attacked, Limits, or_default, register, uniform

__all__: list[str] = []

MIN_SIDE = 8  # pixels; no crop or resize gives a shorter side

_AREA: Limits = {"low": 0.01, "high": 1.0, "unit": "fraction of the area"}


@register("identity", "No change, apart from rounding to 8 bit.")
def identity(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return images


@register("crop", "Keep the centre of the image: the given fraction of its area.", default=0.5, **_AREA)
def crop(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    height, width = _cropped(images, strength)
    return _window(images, (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2, height, width)


@register("crop-random", "Keep a window at a random position: the given fraction of the area.", default=0.5, **_AREA)
def crop_random(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    generator = or_default(generator)
    height, width = _cropped(images, strength)
    top = int(torch.randint(images.shape[-2] - height + 1, (), generator=generator))
    left = int(torch.randint(images.shape[-1] - width + 1, (), generator=generator))
    return _window(images, top, left, height, width)


@register(
    "rotation",
    "Rotate counter-clockwise on the same canvas, with black corners. Multiples of 90 rotate the canvas, exactly.",
    default=25,
    low=-360,
    high=360,
    unit="degrees",
)
def rotation(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    height, width = images.shape[-2:]
    if strength % 90:
        geometry = Geometry.rotation(strength, (height, width))
        return Attacked(resample(images, geometry, (height, width)), geometry)
    # Each quarter turn: the received (x, y) was (width - y, x).
    turns, geometry = int(strength // 90) % 4, Geometry.identity()
    for turn in range(turns):
        side = width if turn % 2 == 0 else height
        quarter = Geometry(torch.tensor([[0, -1, side], [1, 0, 0], [0, 0, 1]], dtype=torch.float64))
        geometry = geometry @ quarter
    return Attacked(torch.rot90(images, turns, (-2, -1)), geometry)


@register(
    "resize",
    "Resize to the given fraction of the area (bicubic, low-pass filtered when shrinking); keeps the aspect ratio.",
    default=0.5,
    low=0.01,
    high=4.0,
    unit="fraction of the area",
)
def resize(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    return scaled(images, math.sqrt(strength), math.sqrt(strength))


@register(
    "aspect",
    "Change the aspect ratio: below 1 the width shrinks by the strength, above 1 the height by its inverse.",
    default=0.8,
    low=0.25,
    high=4.0,
    unit="change of width : height",
)
def aspect(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    return scaled(images, min(strength, 1.0), min(1 / strength, 1.0))


@register("flip", "Mirror left and right.")
def flip(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    mirror = torch.tensor([[-1, 0, images.shape[-1]], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    return Attacked(images.flip(-1), Geometry(mirror))


@register(
    "perspective",
    "Move each corner inward by a random amount up to the strength; black outside.",
    default=0.1,
    low=0.0,
    high=0.4,
    unit="fraction of the side",
)
def perspective(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    generator = or_default(generator)
    height, width = images.shape[-2:]
    corners: list[tuple[float, float]] = []
    moved: list[tuple[float, float]] = []
    for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)):
        dx, dy = uniform(0, strength, generator), uniform(0, strength, generator)
        corners.append((x * width, y * height))
        moved.append((abs(x - dx) * width, abs(y - dy) * height))
    geometry = _homography(moved, corners)
    return Attacked(resample(images, geometry, (height, width)), geometry)


def scaled(images: Tensor, x: float, y: float) -> Attacked:
    """Resize by factors of width and height, rounded to whole pixels; the geometry is that of the result."""
    height, width = images.shape[-2:]
    size = max(MIN_SIDE, round(height * y)), max(MIN_SIDE, round(width * x))
    if size == (height, width):
        return Attacked(images, Geometry.identity())
    small = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return Attacked(small, Geometry.scale(width / size[1], height / size[0]))


def _cropped(images: Tensor, area: float) -> tuple[int, int]:
    height, width = images.shape[-2:]
    side = math.sqrt(area)
    return (
        min(height, max(MIN_SIDE, round(height * side))),
        min(width, max(MIN_SIDE, round(width * side))),
    )


def _window(images: Tensor, top: int, left: int, height: int, width: int) -> Attacked:
    return Attacked(images[..., top : top + height, left : left + width], Geometry.shift(left, top))


def _homography(source: list[tuple[float, float]], target: list[tuple[float, float]]) -> Geometry:
    """The homography through four pairs of points: eight linear equations in its first eight entries."""
    rows: list[list[float]] = []
    values: list[float] = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solution = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))
    return Geometry(torch.cat([solution, torch.ones(1, dtype=torch.float64)]).reshape(3, 3))
