"""Alignment of tiles with the sync patterns: shift, flip, quarter turn and number of bits.

In the band, the correlation of a sync pattern s with the tile t moved by (x, y) is

    c(x, y) = Re sum_k conj(s_k) t_k exp(2 pi i (kx x + ky y) / 64),

computed for all shifts by two small matrix products, over kx and over ky; a few Newton steps refine the peak to
fractions of a pixel. The eight orientations of a tile only permute its frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .band import FREQUENCIES, TILE
from .tile_average import shifted

__all__ = ["ORIENTATIONS", "Alignment", "align", "oriented", "refine", "roughness"]

GRID = 48  # shifts tried per side: steps of 4/3 pixels, an eighth of the shortest period
NEWTON_STEPS = 4
TINY = 1e-12
CHUNK = 4  # tiles whose surfaces are computed at a time; they fit the cache


def _orientations() -> Tensor:
    """Identity, quarter turns, and the same after a flip of x: (8, 2, 2), received to marked directions."""
    turn = torch.tensor([[0, -1], [1, 0]])
    flip = torch.tensor([[-1, 0], [0, 1]])
    turns = [torch.linalg.matrix_power(turn.double(), n).round().long() for n in range(4)]
    return torch.stack(turns + [t @ flip for t in turns])


ORIENTATIONS = _orientations()


@lru_cache(maxsize=1)
def _permutations() -> tuple[Tensor, Tensor]:
    """Source index and sign of the sine for each orientation and frequency, (8, 182) each."""
    index = {tuple(k): i for i, k in enumerate(FREQUENCIES.tolist())}
    source = torch.zeros(len(ORIENTATIONS), len(FREQUENCIES), dtype=torch.long)
    sign = torch.ones(len(ORIENTATIONS), len(FREQUENCIES))
    for o, orientation in enumerate(ORIENTATIONS):
        for i, (kx, ky) in enumerate((FREQUENCIES @ orientation.T).tolist()):
            target = index.get((kx, ky))
            if target is None:
                target = index[(-kx, -ky)]
                sign[o, target] = -1
            source[o, target] = i
    return source, sign


def oriented(tiles: Tensor) -> Tensor:
    """All eight orientations of tiles: (N, 364) -> (N, 8, 364)."""
    source, sign = _permutations()
    a, b = tiles.chunk(2, -1)
    return torch.cat([a[:, source], b[:, source] * sign.to(tiles)], -1)


def roughness(tiles: Tensor) -> Tensor:
    """Second spectral moments of tiles, which determine the effective number of independent shifts.

    Returns:
        (N, 2): of the second spectral moments L, sqrt L_xx + sqrt L_yy in 1/pixel, and sqrt(det L) in 1/pixel^2.
    """
    a, b = tiles.double().chunk(2, -1)
    power = a * a + b * b
    power = power / power.sum(-1, keepdim=True).clamp(min=torch.finfo(power.dtype).tiny)
    k = FREQUENCIES.double() * (2 * torch.pi / TILE)
    moments = torch.einsum("nk,ki,kj->nij", power, k, k)
    along = moments.diagonal(dim1=1, dim2=2).sqrt().sum(1)
    return torch.stack([along, torch.linalg.det(moments).clamp(min=0).sqrt()], 1)


@dataclass(frozen=True)
class Alignment:
    """The best alignment of each tile with each sync pattern.

    Attributes:
        cosine: (N, S), of sync pattern and moved tile, before refinement between the pixels.
        orientation: (N, S), index into `ORIENTATIONS`.
        x, y: (N, S), pixels to move the oriented tile right and down.
    """

    cosine: Tensor
    orientation: Tensor
    x: Tensor
    y: Tensor


def _spectrum(tiles: Tensor) -> Tensor:
    a, b = tiles.chunk(2, -1)
    return torch.complex(a, b)


@lru_cache(maxsize=1)
def _waves() -> tuple[Tensor, Tensor, Tensor]:
    """The sum over the band as two matrix products: first along x, then along y.

    Returns:
        Index of each frequency in a rectangle of (ky, kx), 182 for those outside of the band; exp(i kx x) and exp(i ky
        y) at `GRID` positions, as real matrices that act on real parts followed by imaginary parts.
    """
    kx, ky = FREQUENCIES.unbind(1)
    reach = int(kx.abs().max())
    place = torch.full((int(ky.max()) + 1, 2 * reach + 1), len(FREQUENCIES))
    place[ky, kx + reach] = torch.arange(len(FREQUENCIES))
    position = torch.arange(GRID, dtype=torch.float64) * (2 * torch.pi / GRID)
    x = torch.arange(-reach, reach + 1)[:, None] * position
    y = torch.arange(len(place))[:, None] * position
    along_x = torch.cat([torch.cat([x.cos(), x.sin()], 1), torch.cat([-x.sin(), x.cos()], 1)])
    return place, along_x, torch.cat([y.cos(), -y.sin()]).T.contiguous()


def _surface(product: Tensor) -> Tensor:
    """c(x, y) on the grid of shifts, (N, GRID, GRID), of conj(s_k) t_k as real and imaginary parts (N, 2, 182)."""
    place, along_x, along_y = _waves()
    rectangle = rearrange(F.pad(product, (0, 1))[..., place], "n part ky kx -> n ky (part kx)")
    rows = rearrange(rectangle @ along_x.to(product), "n ky (part x) -> n (part ky) x", part=2)
    return along_y.to(product) @ rows


def align(tiles: Tensor, sync: Tensor, orientations: Tensor | None = None) -> Alignment:
    """Align all tiles with all sync patterns, over all shifts and orientations.

    Args:
        tiles: (N, 364) float32.
        sync: (S, 364), unit vectors.
        orientations: Indices into `ORIENTATIONS` to try; None for all.
    """
    unit = oriented(F.normalize(tiles, dim=-1))
    chosen = torch.arange(len(ORIENTATIONS)) if orientations is None else orientations
    unit, pattern = _spectrum(unit[:, chosen]), _spectrum(sync.to(tiles)).conj()
    parts = [_peaks(u[:, None] * pattern[None, :, None]) for u in unit.split(CHUNK)]
    best, index = (torch.cat(part) for part in zip(*parts, strict=True))
    step = TILE / GRID
    shift = index % GRID**2
    return Alignment(
        best, chosen[index // GRID**2], (shift % GRID) * step, torch.div(shift, GRID, rounding_mode="floor") * step
    )


def _peaks(product: Tensor) -> tuple[Tensor, Tensor]:
    """Largest correlation over orientations and shifts, and its index, of conj(s_k) t_k (N, S, O, 182): (N, S) each."""
    surface = _surface(torch.stack([product.real, product.imag], -2).flatten(0, 2))
    surface = surface.reshape(*product.shape[:2], -1, GRID)  # one row for each orientation and y
    best, row = surface.amax(-1).max(-1)
    inside = surface.gather(2, row[..., None, None].expand(-1, -1, -1, GRID))[:, :, 0].argmax(-1)
    return best, row * GRID + inside


def refine(
    tile: Tensor, sync: Tensor, x: Tensor, y: Tensor, beside: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Move shifts to the nearby peak of the correlation by Newton's method.

    Args:
        tile: Oriented tiles, (..., 364).
        sync: (..., 364).
        x, y: (...).
        beside: Another tile with the same noise, and a pattern of about the same amplitude in it: the peak is that of
            both correlations added up.

    Returns:
        x, y, and the cosine of tile and sync pattern there.
    """
    k = FREQUENCIES.to(tile) * (2 * torch.pi / TILE)
    product = _spectrum(F.normalize(tile, dim=-1)) * _spectrum(sync.to(tile)).conj()
    if beside is not None:
        other = beside[0] / tile.norm(dim=-1, keepdim=True).clamp(min=TINY)
        product = product + _spectrum(other) * _spectrum(beside[1].to(tile)).conj()
    for _ in range(NEWTON_STEPS):
        value = product * torch.exp(1j * (k[:, 0] * x[..., None] + k[:, 1] * y[..., None]))
        gradient = -torch.einsum("...k,ki->...i", value.imag, k)
        hessian = -torch.einsum("...k,ki,kj->...ij", value.real, k, k)
        # Near the peak the Hessian is negative; otherwise take a short gradient step.
        determinant = hessian[..., 0, 0] * hessian[..., 1, 1] - hessian[..., 0, 1] ** 2
        peak = (determinant > 0) & (hessian[..., 0, 0] < 0)
        safe = torch.where(peak[..., None, None], hessian, -torch.eye(2).to(hessian))
        step = -torch.linalg.solve(safe, gradient[..., None])[..., 0]
        step = step.clamp(-1, 1)
        x, y = x + step[..., 0], y + step[..., 1]
    return x, y, (F.normalize(shifted(tile, x, y), dim=-1) * sync.to(tile)).sum(-1)
