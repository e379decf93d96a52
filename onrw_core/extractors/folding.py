"""Folding: the average of all tiles of a whitened picture, as coefficients of the band.

A periodic mark adds up over the tiles, the picture does not. The tile is read at the band's 182 frequencies only, and
there
moving it is exact for any fraction of a pixel: a shift multiplies each complex coefficient by a phase.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .carriers import FREQUENCIES, RADIUS_SQUARED, TILE, band_basis

__all__ = ["coefficients", "fold", "shifted", "tile_grid"]

# Amplitudes of the folded, whitened tiles of photographs go with about this power of the frequency (measured -0.6 to
# -0.8). The reader divides it out, so that
# no part of the band drowns the others.
HOST_SLOPE = -1.1


@lru_cache(maxsize=4)
def _basis(device: torch.device, dtype: torch.dtype) -> Tensor:
    radius = FREQUENCIES.double().norm(dim=1) / RADIUS_SQUARED[1] ** 0.5
    gain = radius.pow(-HOST_SLOPE)
    return (band_basis() * torch.cat([gain, gain])).to(device, dtype)


def fold(w: Tensor, weight: Tensor | None = None, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Average all tiles.

    Args:
        w: Whitened picture, (B, 1, H, W).
        weight: (1 or B, 1, H, W); None for ones.
        offset: (x, y) of the first pixel in the marked frame, whole pixels.

    Returns:
        (B, 64, 64); positions that no pixel covers are 0.
    """
    left, top = offset[0] % TILE, offset[1] % TILE
    height, width = w.shape[-2:]
    pad = (left, -(left + width) % TILE, top, -(top + height) % TILE)

    def total(x: Tensor) -> Tensor:
        x = F.pad(x, pad)
        return x.reshape(len(x), x.shape[-2] // TILE, TILE, x.shape[-1] // TILE, TILE).sum((1, 3))

    count = total(torch.ones_like(w[:1]) if weight is None else weight)
    # A position seen by less than half a pixel is not worth its noise.
    return total(w) / count.clamp(min=0.5)


def tile_grid(w: Tensor) -> Tensor:
    """Every tile of whitened pictures (B, 1, H, W) by itself, without averaging: (B, rows, columns, 64, 64).

    The last row and column are filled up with zeros.
    """
    w = F.pad(w, (0, -w.shape[-1] % TILE, 0, -w.shape[-2] % TILE))
    rows, columns = w.shape[-2] // TILE, w.shape[-1] // TILE
    return w.reshape(len(w), rows, TILE, columns, TILE).transpose(2, 3)


def coefficients(tiles: Tensor) -> Tensor:
    """Project tiles (..., 64, 64) on the band, flattened by the mean spectrum of photographs: (..., 364)."""
    return tiles.flatten(-2) @ _basis(tiles.device, tiles.dtype)


def shifted(coefficients: Tensor, x: float | Tensor, y: float | Tensor) -> Tensor:
    """Coefficients of a tile whose content is moved by (x, y) pixels, any fraction.

    Args:
        coefficients: (..., 364).
        x: Pixels to the right, a number or a tensor that broadcasts against (...).
        y: Pixels down.
    """
    kx, ky = FREQUENCIES.to(coefficients).unbind(1)
    x, y = (torch.as_tensor(v, dtype=coefficients.dtype, device=coefficients.device)[..., None] for v in (x, y))
    phase = 2 * torch.pi / TILE * (kx * x + ky * y)
    cos, sin = phase.cos(), phase.sin()
    a, b = coefficients.chunk(2, -1)
    # cos(k(u - x)) = cos(ku)cos(kx) + sin(ku)sin(kx), sin(k(u - x)) = sin(ku)cos(kx) - cos(ku)sin(kx)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
