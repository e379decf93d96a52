"""Rectification: a colour projection of a received image, resampled into the marked frame by a known geometry.

Crops need no resampling (the tile is shifted afterwards, see `tile_average.shifted`), quarter turns and flips are
exact, everything else is resampled once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging.geometry import Geometry

__all__ = ["Rectified", "rectify"]

MAX_SIDE = 4096  # of the frame, pixels
EXACT = 1e-9


class Rectified(NamedTuple):
    """A projection in the marked frame.

    Attributes:
        y: (B, 1, H, W).
        weight: (1, 1, H, W), 0 outside of the image; None for 1 everywhere.
        x0, y0: Position of the upper left corner in the marked frame, pixels.
    """

    y: Tensor
    weight: Tensor | None
    x0: float
    y0: float


def rectify(y: Tensor, geometry: Geometry | None, limit: int = MAX_SIDE) -> Rectified:
    """Undo `geometry`.

    Args:
        y: A projection of the received image, (B, 1, H, W).
        geometry: Maps received to marked coordinates; None for unchanged.
        limit: Only the centre of the frame, of at most this side in pixels, is resampled.

    Returns:
        The part of the marked frame that the image covers; differentiable in `y`.
    """
    if geometry is None:
        return Rectified(y, None, 0.0, 0.0)
    matrix = geometry.matrix / geometry.matrix[2, 2]
    if float(matrix[2, :2].abs().max()) < EXACT:
        linear = matrix[:2, :2]
        turned = linear.round()
        if float((linear - turned).abs().max()) < EXACT and abs(float(torch.linalg.det(turned))) == 1:
            return _exact(y, matrix, turned, limit)
    scale = math.sqrt(abs(float(torch.linalg.det(matrix[:2, :2]))))
    factor = min(int(0.5 / scale), *y.shape[-2:])
    if factor > 1:  # of a large image, means of whole pixels suffice for the first part
        y, geometry = F.avg_pool2d(y, factor), geometry @ Geometry.scale(factor)
        scale *= factor
    if scale < 0.8:  # the marked frame is smaller: low-pass first
        height, width = y.shape[-2:]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        y = F.interpolate(y, size=size, mode="bicubic", antialias=True, align_corners=False)
        geometry = geometry @ Geometry.scale(width / size[1], height / size[0])
    return _resampled(y, geometry, limit)


def _corners(height: int, width: int) -> Tensor:
    return torch.tensor([[0, 0], [width, 0], [0, height], [width, height]], dtype=torch.float64)


def _exact(y: Tensor, matrix: Tensor, turned: Tensor, limit: int) -> Rectified:
    """Signed permutations of the axes: flips, quarter turns and, with neither, crops."""
    top, left = (max(0, (side - limit) // 2) for side in y.shape[-2:])
    y = y[..., top : top + limit, left : left + limit]
    corners = (_corners(*y.shape[-2:]) + torch.tensor([left, top])) @ matrix[:2, :2].T + matrix[:2, 2]
    x0, y0 = corners.min(0).values.tolist()
    if turned[0, 0] == 0:  # received x runs along marked y
        y = y.transpose(-1, -2)
        signs = (turned[0, 1], turned[1, 0])
    else:
        signs = (turned[0, 0], turned[1, 1])
    dims = [dim for dim, sign in ((-1, signs[0]), (-2, signs[1])) if sign < 0]
    return Rectified(y.flip(dims) if dims else y, None, x0, y0)


def _resampled(y: Tensor, geometry: Geometry, limit: int) -> Rectified:
    corners = geometry.apply(_corners(*y.shape[-2:]))
    # The marked frame begins at (0, 0): negative coordinates are the corners left by a rotation.
    low = corners.min(0).values.clamp(min=0).floor()
    high = corners.max(0).values.ceil()
    surplus = ((high - low - limit).clamp(min=0) / 2).ceil()
    low, high = low + surplus, high - surplus
    width, height = (int(v) for v in (high - low).clamp(min=1).tolist())
    x0, y0 = low.tolist()
    to_received = geometry.inverse() @ Geometry.shift(x0, y0)
    grid = _grid(to_received, height, width, y)
    # Half a pixel inside of the edge, where interpolation uses no pixels outside of the image.
    edge = 1 - torch.tensor([1 / y.shape[-1], 1 / y.shape[-2]])
    weight = (grid.abs() <= edge.to(y)).all(-1)[:, None].to(y)
    rectified = F.grid_sample(y, grid.expand(len(y), -1, -1, -1), mode="bicubic", align_corners=False)
    return Rectified(rectified, weight, x0, y0)


def _grid(geometry: Geometry, height: int, width: int, like: Tensor) -> Tensor:
    """Sampling positions of a (height, width) image in the -1 to 1 coordinates of `like`, (1, height, width, 2)."""
    extent = torch.tensor([like.shape[-1], like.shape[-2], 1.0], dtype=torch.float64)
    to_unit = torch.tensor([[2.0, 0, -1], [0, 2, -1], [0, 0, 1]], dtype=torch.float64) @ torch.diag(1 / extent)
    matrix = (to_unit @ geometry.matrix / geometry.matrix[2, 2]).to(like)
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    y = torch.arange(height, dtype=like.dtype, device=like.device)[:, None] + 0.5
    rows = [matrix[i, 0] * x + (matrix[i, 1] * y + matrix[i, 2]) for i in range(3)]
    if float(matrix[2, :2].abs().max()) > 0:
        rows = [rows[0] / rows[2], rows[1] / rows[2]]
    return torch.stack(rows[:2], -1)[None]
