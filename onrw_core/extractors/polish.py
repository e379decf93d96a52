"""Polish: a nearly right geometry is made right by looking at every tile on its own.

Where the geometry is off by a little, each tile b with its centre at c_b is moved by a small d_b = D c_b + b + c_b (g
c_b) (rotation, scale, aspect and shear in D, shift in b, perspective in g). In the band that is a phase, so the
correlation with the sync pattern s,

    J = Re sum_b sum_k conj(s_k) t_bk exp(i k d_b),

needs no new resampling. It is climbed by Newton steps whose Hessian is that of a perfect mark of the present J, hence
negative everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Geometry
from .carriers import FREQUENCIES, TILE
from .folding import coefficients, tile_grid

__all__ = ["blocks", "polished"]

STEPS = 8
MAX_STEP, MIN_STEP = 2.0, 1e-3  # pixels at the frame's edge
MIN_COVER = 0.25  # part of a tile that must be covered to take part


def blocks(w: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every tile of a whitened picture by itself.

    Args:
        w: (1, 1, H, W).
        weight: (1, 1, H, W) or None for ones.

    Returns:
        Coefficients (T, 364), and centres (T, 2) of (x, y) in pixels.
    """
    grid = tile_grid(w)[0]
    rows, columns = grid.shape[:2]
    if weight is None:
        cover = (_cover(w.shape[-2])[:, None] * _cover(w.shape[-1])).flatten()
    else:
        cover = tile_grid(weight)[0].mean((-2, -1)).flatten()
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    used = cover > min(MIN_COVER, float(cover.max()) / 2)
    return coefficients(grid.flatten(0, 1)[used]), torch.stack([x, y], -1).reshape(-1, 2)[used] * TILE


def _cover(length: int) -> Tensor:
    """Part of each tile that a line of `length` pixels covers."""
    return (length - torch.arange(0, length, TILE)).clamp(max=TILE) / TILE


def polished(tiles: Tensor, centres: Tensor, sync: Tensor, perspective: bool = False) -> tuple[Geometry, float]:
    """Climb to the geometry at which the tiles agree best with a sync pattern.

    Args:
        tiles: (T, 364), oriented and shifted into place.
        centres: (T, 2), in pixels of the same frame.
        sync: (364,).
        perspective: Whether to adapt the two perspective numbers as well; needs a strong mark.

    Returns:
        What takes the tiles' frame to the corrected one, and how many times better they agree then, as far as moving
        whole tiles goes: 1 where so many parameters would fit noise as well (the criterion of Akaike).
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
