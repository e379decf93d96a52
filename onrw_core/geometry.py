"""Where a received picture lies in the frame that was marked.

A `Geometry` is a homography that takes continuous pixel coordinates (x right, y down; the centre of the first pixel is
(0.5, 0.5)) of the received picture to those of the marked frame. Crops, scales, rotations, flips and perspective are
all of this form, and they compose by matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Geometry", "resample"]


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
        """A crop whose upper left corner lay at (x, y) of the marked frame."""
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[0, 2], matrix[1, 2] = x, y
        return cls(matrix)

    @classmethod
    def scale(cls, x: float, y: float | None = None) -> Geometry:
        """A picture whose pixels were x (and y) times smaller: received (1, 1) was (x, y) in the marked frame."""
        return cls(torch.diag(torch.tensor([x, x if y is None else y, 1.0], dtype=torch.float64)))

    @classmethod
    def rotation(cls, degrees: float, size: tuple[int, int]) -> Geometry:
        """A picture of (height, width) `size` whose content was turned counter-clockwise about its centre."""
        angle = math.radians(degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
        centre = cls.shift(size[1] / 2, size[0] / 2).matrix
        return cls(centre @ turn @ torch.linalg.inv(centre))

    def __matmul__(self, later: Geometry) -> Geometry:
        """``first @ later``: what the picture is after `first` and then `later` were done to it."""
        return Geometry(self.matrix @ later.matrix)

    def inverse(self) -> Geometry:
        return Geometry(torch.linalg.inv(self.matrix))

    def apply(self, points: Tensor) -> Tensor:
        """Take points (..., 2) of (x, y) through the homography, in float64."""
        homogeneous = torch.cat([points.double(), torch.ones_like(points[..., :1]).double()], -1) @ self.matrix.T
        return homogeneous[..., :2] / homogeneous[..., 2:]


def resample(images: Tensor, geometry: Geometry, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Draw the picture that lies at `geometry` in `images`.

    Args:
        images: (B, C, H, W).
        geometry: Takes coordinates of the result to coordinates of `images`.
        size: (height, width) of the result.
        mode: "bilinear" or "bicubic". Nothing is low-passed: shrink by `F.interpolate(antialias=True)` first.

    Returns:
        (B, C, height, width), zero where the result lies outside of `images`; differentiable in `images`.
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    source = geometry.apply(torch.stack([x, y], -1))
    extent = torch.tensor([images.shape[-1], images.shape[-2]], dtype=torch.float64)
    grid = (source / extent * 2 - 1).to(images)[None].expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
