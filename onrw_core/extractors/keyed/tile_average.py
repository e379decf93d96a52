"""Tiles of a whitened image as coefficients of the band: their mean, and each by itself.

The periodic public layer adds up coherently over the tiles, the image does not; the secret layer does as soon as its
phases are removed. A tile is projected on the band's 182 frequencies only, where shifts by any fraction of a pixel are
exact: they multiply each complex coefficient by a phase.

Waves are separable, cos(a + b) = cos a cos b - sin a sin b, so a tile is projected first along its rows, at 11
frequencies, and then along its columns: a twelfth of the cost of 364 products with whole tiles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .band import FREQUENCIES, RADIUS_SQUARED, TILE, phase_shifted
from .rectify import Rectified

__all__ = [
    "HALF",
    "Placed",
    "coefficients",
    "host_gain",
    "mean_tile",
    "placed_tiles",
    "shifted",
    "tile_grid",
]

HALF = TILE // 2

# Amplitudes of the average tiles of photographs, their local spectra flattened, go with about this power of the
# frequency, beside those of marks. The reader divides it out, so that no part of the band outweighs the others.
HOST_SLOPE = -1.0


def host_gain() -> Tensor:
    """Gain of each frequency, (182,) float64, that makes the mean spectrum of photographs flat."""
    return (FREQUENCIES.double().norm(dim=1) / RADIUS_SQUARED[1] ** 0.5).pow(-HOST_SLOPE)


@lru_cache(maxsize=4)
def _waves(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The projection in two steps.

    Returns:
        Waves along a line of the tile, (64, 2 * 11): cosines of 0 to 10 cycles, then sines; the indices, (4, 182), of
        each frequency's four products (cosine or sine along y, then x) among the 22 x 22; and the gain, with and
        without the sign of kx.
    """
    kx, ky = FREQUENCIES.unbind(1)
    cycles = torch.arange(int(FREQUENCIES.max()) + 1)
    centre = (torch.arange(TILE, dtype=torch.float64) + 0.5) * (2 * torch.pi / TILE)
    phase = centre[:, None] * cycles
    gain = host_gain() * 2**0.5 / TILE
    waves = torch.cat([phase.cos(), phase.sin()], 1).to(device, dtype)
    number = len(cycles)
    row, column = (
        ky + torch.tensor([[0], [0], [number], [number]]),
        kx.abs() + torch.tensor([[0], [number], [0], [number]]),
    )
    place = (row * 2 * number + column).to(device)
    return waves, place, torch.where(kx < 0, -gain, gain).to(device, dtype), gain.to(device, dtype)


def mean_tile(w: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean of all tiles.

    Positions that few pixels cover count less, as in any matched filter: all are divided by the mean number of pixels.

    Args:
        w: Whitened image, (B, 1, H, W), 0 where the weight is 0.
        weight: (1 or B, 1, H, W), 0 or 1; None for ones.

    Returns:
        (B, 64, 64).
    """
    height, width = w.shape[-2:]
    count = height * width if weight is None else weight.sum((1, 2, 3))[:, None, None].clamp(min=1)
    x = F.pad(w, (0, -width % TILE, 0, -height % TILE))
    # Rows of tiles first: whole lines are added up fastest.
    row = rearrange(x, "b 1 (rows y) width -> b rows y width", y=TILE).sum(1)
    return rearrange(row, "b y (columns x) -> b y columns x", x=TILE).sum(2) * (TILE**2 / count)


def tile_grid(w: Tensor) -> Tensor:
    """Every tile of whitened images (B, 1, H, W) by itself, without averaging: (B, rows, columns, 64, 64).

    The last row and column are filled up with zeros.
    """
    w = F.pad(w, (0, -w.shape[-1] % TILE, 0, -w.shape[-2] % TILE))
    return rearrange(w, "b 1 (rows y) (columns x) -> b rows columns y x", y=TILE, x=TILE)


def coefficients(tiles: Tensor) -> Tensor:
    """Project tiles (..., 64, 64) on the band, flattened by the mean spectrum of photographs: (..., 364)."""
    waves, place, signed, gain = _waves(tiles.device, tiles.dtype)
    products = waves.T @ (tiles @ waves)
    cc, cs, sc, ss = products.flatten(-2)[..., place].unbind(-2)
    return torch.cat([gain * cc - signed * ss, gain * sc + signed * cs], -1)


class Placed(NamedTuple):
    """The tiles of an image in the frame of its watermark.

    Attributes:
        tiles: (B, rows, columns, 64, 64), whitened; 0 outside of the image.
        row, column: Of the first tile in the frame.
        x, y: Pixels, at most half: what is left to move the tiles' content right and down (`shifted`).
    """

    tiles: Tensor
    row: int
    column: int
    x: float
    y: float


def placed_tiles(w: Tensor, x0: float, y0: float) -> Placed:
    """Cut a whitened image (B, 1, H, W) into tiles at the nearest whole pixels.

    Args:
        w: See above.
        x0, y0: Position of its upper left corner in the frame, pixels.
    """
    left, top = round(x0), round(y0)
    tiles = tile_grid(F.pad(w, (left % TILE, 0, top % TILE, 0)))
    return Placed(tiles, top // TILE, left // TILE, x0 - left, y0 - top)


class HalfTiles(NamedTuple):
    """Coefficients of the halves (32 x 32 pixels) of an image's tiles, shifted into place.

    Each is that of a tile which is 0 elsewhere, so that the sum over a window is that of the window's average tile.

    Attributes:
        values: (B, rows, columns, 364), without halves outside of the image.
        row, column: Of the first half in the frame, in halves.
    """

    values: Tensor
    row: int
    column: int


def half_tiles(rectified: Rectified) -> HalfTiles:
    """The half tiles of whitened images."""
    placed = placed_tiles(rectified.y, rectified.x0, rectified.y0)
    half = torch.arange(TILE, device=rectified.y.device) // HALF
    part = (half == torch.arange(2, device=rectified.y.device)[:, None]).to(rectified.y)  # (2, 64)
    quarters = coefficients(placed.tiles[:, :, :, None, None] * part[:, None, :, None] * part[None, :, None, :])
    quarters = rearrange(quarters, "b rows columns y x d -> b (rows y) (columns x) d")
    if placed.x or placed.y:
        quarters = shifted(quarters, placed.x, placed.y)
    (top, bottom), (left, right) = (
        (start // HALF, -(-(start + side) // HALF))
        for start, side in zip(
            (round(rectified.y0) % TILE, round(rectified.x0) % TILE), rectified.y.shape[-2:], strict=True
        )
    )
    return HalfTiles(quarters[:, top:bottom, left:right], 2 * placed.row + top, 2 * placed.column + left)


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
    return phase_shifted(coefficients, phase.cos(), phase.sin())
