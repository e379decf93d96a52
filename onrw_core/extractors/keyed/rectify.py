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

from ...imaging.geometry import Geometry, size_of

__all__ = ["Rectified", "rectify", "signed_permutation"]

MAX_SIDE = 4096  # of the frame, pixels
EXACT = 1e-9
LOW_PASS = 0.8  # scale below which the marked frame is so much smaller that a low-pass filter comes first
MARGIN = 8  # pixels of the marked frame, beyond which resampling uses none


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

    def moved(self, geometry: Geometry) -> Rectified | None:
        """The same after a shift with or without a flip or quarter turn, which needs no resampling; None after others.

        Args:
            geometry: Maps this frame to the new one.
        """
        turned = signed_permutation(geometry)
        if turned is None:
            return None
        corners = geometry.apply(_corners(*self.y.shape[-2:]) + torch.tensor([self.x0, self.y0], dtype=torch.float64))
        x0, y0 = corners.min(0).values.tolist()
        weight = None if self.weight is None else _permuted(self.weight, turned)
        return Rectified(_permuted(self.y, turned), weight, x0, y0)


def _permuted(y: Tensor, turned: Tensor) -> Tensor:
    """Images whose axes are permuted and reversed by a signed permutation (2, 2)."""
    if turned[0, 0] == 0:  # received x runs along marked y
        y = y.transpose(-1, -2)
    dims = [dim for dim, row in ((-1, 0), (-2, 1)) if turned[row].sum() < 0]
    return y.flip(dims) if dims else y


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
    if signed_permutation(geometry) is not None:
        top, left = (max(0, (side - limit) // 2) for side in y.shape[-2:])
        centre = Rectified(y[..., top : top + limit, left : left + limit], None, left, top)
        moved = centre.moved(geometry)
        assert moved is not None
        return moved
    frame = _frame(geometry, size_of(y), limit)
    scale = math.sqrt(abs(float(torch.linalg.det(geometry.matrix[:2, :2] / geometry.matrix[2, 2]))))
    factor = min(int(0.5 / scale), *y.shape[-2:])
    if scale < LOW_PASS:  # of a large image, resize no more than that frame
        y, geometry = _around(y, geometry, frame, max(1, factor), MARGIN / scale)
    if factor > 1:  # of a large image, means of whole pixels suffice for the first part
        y, geometry = F.avg_pool2d(y, factor), geometry @ Geometry.scale(factor)
        scale *= factor
    if scale < LOW_PASS:
        height, width = y.shape[-2:]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        y = F.interpolate(y, size=size, mode="bicubic", antialias=True, align_corners=False)
        geometry = geometry @ Geometry.scale(width / size[1], height / size[0])
    return _resampled(y, geometry, frame)


def _corners(height: int, width: int) -> Tensor:
    return torch.tensor([[0, 0], [width, 0], [0, height], [width, height]], dtype=torch.float64)


def signed_permutation(geometry: Geometry) -> Tensor | None:
    """The linear part (2, 2) of a shift with or without a flip or quarter turn; None for any other geometry."""
    matrix = geometry.matrix / geometry.matrix[2, 2]
    turned = matrix[:2, :2].round()
    exact = float(matrix[2, :2].abs().max()) < EXACT and float((matrix[:2, :2] - turned).abs().max()) < EXACT
    return turned if exact and abs(float(torch.linalg.det(turned))) == 1 else None


class _Frame(NamedTuple):
    """The part of the marked frame that is resampled, pixels."""

    x0: float
    y0: float
    width: int
    height: int


def _frame(geometry: Geometry, size: tuple[int, int], limit: int) -> _Frame:
    """The centre of what an image of (height, width) `size` covers."""
    corners = geometry.apply(_corners(*size))
    # The marked frame begins at (0, 0): negative coordinates are the corners left by a rotation.
    low = corners.min(0).values.clamp(min=0).floor()
    high = corners.max(0).values.ceil()
    surplus = ((high - low - limit).clamp(min=0) / 2).ceil()
    low, high = low + surplus, high - surplus
    width, height = (int(v) for v in (high - low).clamp(min=1).tolist())
    x0, y0 = low.tolist()
    return _Frame(x0, y0, width, height)


def _around(y: Tensor, geometry: Geometry, frame: _Frame, step: int, margin: float) -> tuple[Tensor, Geometry]:
    """The part of an image that a frame needs, from a multiple of `step` pixels on, and its geometry."""
    if float(geometry.matrix[2, :2].abs().max()) >= EXACT:  # the frame may reach beyond the horizon
        return y, geometry
    corners = _corners(frame.height, frame.width) + torch.tensor([frame.x0, frame.y0])
    corners = geometry.inverse().apply(corners)
    extent = torch.tensor([y.shape[-1], y.shape[-2]])
    low = ((corners.min(0).values - margin) / step).floor().clamp(min=0).long() * step
    high = torch.minimum((corners.max(0).values + margin).ceil().long(), extent)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    if min(right - left, bottom - top) < step:  # outside of the image
        return y, geometry
    return y[..., top:bottom, left:right], geometry @ Geometry.shift(left, top)


def _resampled(y: Tensor, geometry: Geometry, frame: _Frame) -> Rectified:
    to_received = geometry.inverse() @ Geometry.shift(frame.x0, frame.y0)
    grid = _grid(to_received, frame.height, frame.width, y)
    # Half a pixel inside of the edge, where interpolation uses no pixels outside of the image.
    edge = 1 - torch.tensor([1 / y.shape[-1], 1 / y.shape[-2]])
    weight = (grid.abs() <= edge.to(y)).all(-1)[:, None].to(y)
    rectified = F.grid_sample(y, grid.expand(len(y), -1, -1, -1), mode="bicubic", align_corners=False)
    return Rectified(rectified, weight, frame.x0, frame.y0)


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
