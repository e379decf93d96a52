"""Refinement: correction of a nearly correct geometry from the displacements of single tiles.

If the geometry is slightly wrong, each tile b with its centre at c_b is displaced by a small d_b = D c_b + b + c_b (g
c_b) (rotation, scale, aspect and shear in D, shift in b, perspective in g). In the band a displacement is a phase, so
the correlation with a pattern s, that of the pilot, or of the key once the phases of the tiles are removed,

    J = Re sum_b sum_k conj(s_k) t_bk exp(i k d_b),

needs no resampling. It is maximised by Newton steps with the Hessian of an ideal watermark of the same J, which is
negative definite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...imaging.geometry import Geometry
from .band import FREQUENCIES, TILE
from .rectify import Rectified
from .tile_average import coefficients, placed_tiles, shifted

__all__ = ["Covered", "covered_tiles", "refined_geometry"]

STEPS = 8  # Newton steps at most; each at most MAX_STEP, so together up to 16 pixels at the edge of the frame
# Pixels at the edge of the frame. At the edge of the band, .17 cycles per pixel, 2 pixels are a third of a period;
# beyond half a period the gradient points away. The last step is far below `reader.NEGLIGIBLE`.
MAX_STEP, MIN_STEP = 2.0, 1e-3
MIN_COVER = 0.25  # part of a tile that must be covered to take part


class Covered(NamedTuple):
    """The single tiles of an image in the frame of its watermark, without those that the image hardly covers.

    Attributes:
        tiles: Coefficients, (T, 364); T is 0 if all weights are 0.
        centres: (T, 2) of (x, y) in the frame, pixels.
        places: (T, 2), row and column of each tile in the frame.
    """

    tiles: Tensor
    centres: Tensor
    places: Tensor


def covered_tiles(rectified: Rectified) -> Covered:
    """The tiles of a whitened image (1, 1, H, W)."""
    weight = torch.ones_like(rectified.y) if rectified.weight is None else rectified.weight
    x0, y0 = rectified.x0, rectified.y0
    placed = placed_tiles(rectified.y, x0, y0)
    cover = placed_tiles(weight, x0, y0).tiles[0].mean((-2, -1))
    rows, columns = (cover > min(MIN_COVER, float(cover.max()) / 2)).nonzero(as_tuple=True)
    tiles = shifted(coefficients(placed.tiles[0, rows, columns]), placed.x, placed.y)
    places = torch.stack([rows + placed.row, columns + placed.column], 1)
    return Covered(tiles, (places.flip(1) + 0.5) * TILE, places)


def refined_geometry(tiles: Tensor, centres: Tensor, sync: Tensor, perspective: bool = False) -> tuple[Geometry, float]:
    """The geometry at which the tiles correlate best with a pattern.

    Args:
        tiles: (T, 364), oriented and shifted into place.
        centres: (T, 2), in pixels of the same frame.
        sync: (364,).
        perspective: Whether to adapt the two perspective numbers as well; needs a strong watermark.

    Returns:
        The map from the frame of the tiles to the corrected frame, and the predicted gain of the correlation if whole
        tiles are moved: 1 if as many parameters would fit noise as well (Akaike's criterion).
    """
    middle = centres.mean(0)
    radius = (centres - middle).norm(dim=1).max().clamp(min=TILE / 2)
    c = (centres - middle) / radius
    k = FREQUENCIES.to(tiles) * (2 * torch.pi / TILE)
    x, y = c.unbind(1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    # d_b is a sum of displacement fields, one for each parameter: D (four), b (two), g (two).
    fields = [(x, zero), (y, zero), (zero, x), (zero, y), (one, zero), (zero, one)]
    if perspective:
        fields += [(x * x, x * y), (x * y, y * y)]
    across, down = (torch.stack(part, -1) for part in zip(*fields, strict=True))  # (T, P) each
    field = torch.stack([across, down], 1).flatten(0, 1)  # (2 T, P)
    a, b = tiles.chunk(2, -1)
    sa, sb = sync.to(tiles).chunk(2, -1)
    real, imaginary = a * sa + b * sb, b * sa - a * sb
    power = sa * sa + sb * sb
    (xx, xy), (_, yy) = k.T @ (k * (power / power.sum())[:, None])
    mixed = across.T @ down
    hessian = (xx * (across.T @ across) + xy * (mixed + mixed.T) + yy * (down.T @ down)) / len(tiles)
    inverse = torch.linalg.inv(hessian + 1e-4 * hessian.diagonal().mean() * torch.eye(len(hessian)))
    parameters = torch.zeros(len(fields))
    best, best_value, first = parameters, -torch.inf, 0.0
    for step_number in range(STEPS + 1):
        phase = (field @ parameters).reshape(-1, 2) @ k.T
        cos, sin = phase.cos(), phase.sin()
        total = float((real * cos).sub_(imaginary * sin).sum())
        first = total if step_number == 0 else first
        if total > best_value:
            best, best_value = parameters, total
        turned = sin.mul_(real).add_(cos.mul_(imaginary))
        gradient = -(field.T @ (turned @ k).flatten())
        step = inverse @ gradient / max(abs(total), 1e-6)
        length = float(step.abs().max())
        if length < MIN_STEP:
            break
        parameters = parameters + step * min(1.0, MAX_STEP / length)
    # The log-likelihood of J is its square over twice its variance, the tiles' energy per dimension.
    variance = float(tiles.square().sum()) / tiles.shape[1]
    first = max(first, 0.0)
    if best_value**2 - first**2 < 2 * variance * len(fields):
        gain = 1.0
    else:
        gain = best_value / first if first else torch.inf
    return _homography(best.double(), middle.double(), float(radius)), gain


def _homography(parameters: Tensor, middle: Tensor, radius: float) -> Geometry:
    """p + d(p), to first order in the perspective numbers."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] += parameters[:4].reshape(2, 2) / radius
    matrix[:2, 2] = parameters[4:6]
    if len(parameters) > 6:
        matrix[2, :2] = -parameters[6:] / radius**2
    centre = Geometry.shift(float(middle[0]), float(middle[1]))
    return centre @ Geometry(matrix) @ centre.inverse()
