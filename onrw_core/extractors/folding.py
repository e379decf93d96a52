"""Folding: the average of all tiles of a whitened picture, as coefficients of the band.

A periodic mark adds up over the tiles, the picture does not. The tile is read at the band's 182 frequencies only, and
there moving it is exact for any fraction of a pixel: a shift multiplies each complex coefficient by a phase.

Waves are products, cos(a + b) = cos a cos b - sin a sin b, so a tile is projected on them first along its rows, at 11
frequencies, and then along its columns: a twelfth of the work of the 364 products with whole tiles.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .carriers import FREQUENCIES, RADIUS_SQUARED, TILE

__all__ = ["HALF", "coefficients", "fold", "half_tiles", "shifted", "tile_grid"]

HALF = TILE // 2

# Amplitudes of the folded tiles of photographs, their local spectra flattened, go with about this power of the
# frequency, beside those of marks. The reader divides it out, so that no part of the band drowns the others.
HOST_SLOPE = -1.0


@lru_cache(maxsize=4)
def _waves(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The projection in two steps.

    Returns:
        Waves along a line of the tile, (64, 2 * 11): cosines of 0 to 10 cycles, then sines; for each of the 182
        frequencies its place among the 11 x 11 products of (ky, |kx|); and the gain, with and without the sign of kx.
    """
    kx, ky = FREQUENCIES.unbind(1)
    cycles = torch.arange(int(FREQUENCIES.max()) + 1)
    centre = (torch.arange(TILE, dtype=torch.float64) + 0.5) * (2 * torch.pi / TILE)
    phase = centre[:, None] * cycles
    radius = FREQUENCIES.double().norm(dim=1) / RADIUS_SQUARED[1] ** 0.5
    gain = radius.pow(-HOST_SLOPE) * 2**0.5 / TILE
    waves = torch.cat([phase.cos(), phase.sin()], 1).to(device, dtype)
    place = (ky * len(cycles) + kx.abs()).to(device)
    return waves, place, torch.where(kx < 0, -gain, gain).to(device, dtype), gain.to(device, dtype)


def fold(w: Tensor, weight: Tensor | None = None) -> Tensor:
    """Average all tiles.

    Positions that few pixels cover count less, as in any matched filter: all are divided by the mean number of pixels.

    Args:
        w: Whitened picture, (B, 1, H, W), 0 where the weight is 0.
        weight: (1 or B, 1, H, W), 0 or 1; None for ones.

    Returns:
        (B, 64, 64).
    """
    height, width = w.shape[-2:]
    count = height * width if weight is None else weight.sum((1, 2, 3))[:, None, None].clamp(min=1)
    x = F.pad(w, (0, -width % TILE, 0, -height % TILE))
    # Rows of tiles first: whole lines are added up fastest.
    row = x.reshape(len(x), -1, TILE, x.shape[-1]).sum(1)
    return row.unflatten(-1, (-1, TILE)).sum(2) * (TILE**2 / count)


def tile_grid(w: Tensor) -> Tensor:
    """Every tile of whitened pictures (B, 1, H, W) by itself, without averaging: (B, rows, columns, 64, 64).

    The last row and column are filled up with zeros.
    """
    w = F.pad(w, (0, -w.shape[-1] % TILE, 0, -w.shape[-2] % TILE))
    rows, columns = w.shape[-2] // TILE, w.shape[-1] // TILE
    return w.reshape(len(w), rows, TILE, columns, TILE).transpose(2, 3)


def coefficients(tiles: Tensor) -> Tensor:
    """Project tiles (..., 64, 64) on the band, flattened by the mean spectrum of photographs: (..., 364)."""
    waves, place, signed, gain = _waves(tiles.device, tiles.dtype)
    products = waves.T @ (tiles @ waves)
    cosine, sine = products.unflatten(-2, (2, -1)).unbind(-3)  # of y
    cc, cs = (part.flatten(-2)[..., place] for part in cosine.unflatten(-1, (2, -1)).unbind(-2))
    sc, ss = (part.flatten(-2)[..., place] for part in sine.unflatten(-1, (2, -1)).unbind(-2))
    return torch.cat([gain * cc - signed * ss, gain * sc + signed * cs], -1)


def half_tiles(w: Tensor) -> Tensor:
    """Coefficients of every half tile (32 x 32 pixels) of whitened pictures (B, 1, H, W): (B, rows, columns, 364).

    Each is a tile that is 0 elsewhere, so that sums over windows are those of the window's folded tile.
    """
    grid = tile_grid(w)[:, :, :, None, None]
    half = torch.arange(TILE, device=w.device) // HALF
    part = (half == torch.arange(2, device=w.device)[:, None]).to(w)  # (2, 64)
    quarters = coefficients(grid * part[:, None, :, None] * part[None, :, None, :])
    rows, columns = (-(-side // HALF) for side in w.shape[-2:])
    return quarters.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :rows, :columns]


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
