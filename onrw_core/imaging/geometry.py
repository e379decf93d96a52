"""Homographies from a received image to the marked image.

A `Geometry` maps continuous pixel coordinates (x right, y down; the centre of the first pixel is
(0.5, 0.5)) of the received image to those of the marked image. Crops, scales, rotations, flips and perspective are
all of this form, and they compose by matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Geometry", "resample", "size_of"]


def size_of(images: Tensor) -> tuple[int, int]:
    """(height, width) of images (..., H, W)."""
    return images.shape[-2], images.shape[-1]


@dataclass(frozen=True)
class Geometry:
    """A homography from received to marked coordinates.

    Attributes:
        matrix: (3, 3), float64, on the CPU.
    """

    matrix: Tensor

    @classmethod
    def identity(cls) -> Geometry:
        return cls(torch.eye(3, dtype=torch.float64))

    @classmethod
    def shift(cls, x: float, y: float) -> Geometry:
        """A crop whose upper left corner is at (x, y) of the marked image."""
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[0, 2], matrix[1, 2] = x, y
        return cls(matrix)

    @classmethod
    def scale(cls, x: float, y: float | None = None) -> Geometry:
        """A scaling: (1, 1) of the received image is (x, y) of the marked image; y defaults to x."""
        return cls(torch.diag(torch.tensor([x, x if y is None else y, 1.0], dtype=torch.float64)))

    @classmethod
    def rotation(cls, degrees: float, size: tuple[int, int]) -> Geometry:
        """A counter-clockwise rotation of the content about the centre of an image of (height, width) `size`."""
        angle = math.radians(degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
        centre = cls.shift(size[1] / 2, size[0] / 2).matrix
        return cls(centre @ turn @ torch.linalg.inv(centre))

    def __matmul__(self, later: Geometry) -> Geometry:
        """``first @ later``: the geometry after `first` and then `later` were applied to the image."""
        return Geometry(self.matrix @ later.matrix)

    def inverse(self) -> Geometry:
        return Geometry(torch.linalg.inv(self.matrix))

    def apply(self, points: Tensor) -> Tensor:
        """Map points (..., 2) of (x, y), in float64."""
        homogeneous = torch.cat([points.double(), torch.ones_like(points[..., :1]).double()], -1) @ self.matrix.T
        return homogeneous[..., :2] / homogeneous[..., 2:]


def resample(images: Tensor, geometry: Geometry, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resample `images` by a homography.

    Args:
        images: (B, C, H, W).
        geometry: Maps coordinates of the result to coordinates of `images`.
        size: (height, width) of the result.
        mode: "bilinear" or "bicubic". No low-pass filter is applied: shrink by `F.interpolate(antialias=True)` first.

    Returns:
        (B, C, height, width), zero outside of `images`; differentiable in `images`.
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    source = geometry.apply(torch.stack([x, y], -1))
    extent = torch.tensor([images.shape[-1], images.shape[-2]], dtype=torch.float64)
    grid = (source / extent * 2 - 1).to(images)[None].expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
