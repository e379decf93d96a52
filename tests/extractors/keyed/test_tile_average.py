"""Folding: averages of tiles, and their coefficients in the band."""

import pytest
import torch

from onrw_core.extractors.keyed.band import FREQUENCIES, RADIUS_SQUARED, TILE, band_basis
from onrw_core.extractors.keyed.rectify import Rectified
from onrw_core.extractors.keyed.tile_average import (
    HALF,
    HOST_SLOPE,
    coefficients,
    half_tiles,
    mean_tile,
    placed_tiles,
    shifted,
    tile_grid,
)


@pytest.mark.parametrize("weighted", [False, True])
def test_fold_adds_up_what_lies_on_one_position(weighted):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 1, 150, 100, generator=generator)
    weight = (torch.rand(1, 1, 150, 100, generator=generator) > 0.5).float() if weighted else torch.ones(1, 1, 150, 100)
    found = mean_tile(w * weight, weight if weighted else None)
    sums = torch.zeros(2, TILE, TILE)
    for y in range(150):
        for x in range(100):
            sums[:, y % TILE, x % TILE] += w[:, 0, y, x] * float(weight[0, 0, y, x])
    assert torch.allclose(found, sums * (TILE**2 / float(weight.sum())), atol=1e-5)


def test_coefficients_are_products_with_the_basis():
    tiles = torch.randn(3, 2, TILE, TILE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = (FREQUENCIES.double().norm(dim=1) / RADIUS_SQUARED[1] ** 0.5).pow(-HOST_SLOPE)
    expected = tiles.flatten(-2) @ band_basis() * torch.cat([gain, gain])
    assert torch.allclose(coefficients(tiles), expected, atol=1e-12)


def test_mean_of_the_tiles_is_the_folded_tile():
    w = torch.randn(1, 1, 128, 192, generator=torch.Generator().manual_seed(0))
    grid = coefficients(tile_grid(w))
    assert grid.shape == (1, 2, 3, 364)
    assert torch.allclose(grid.mean((1, 2)), coefficients(mean_tile(w)), atol=1e-5)


@pytest.mark.parametrize(("x0", "y0"), [(0.0, 0.0), (70.0, 40.0), (-30.0, 100.0)])
def test_half_tiles_add_up_to_any_window(x0, y0):
    w = torch.randn(1, 1, 150, 200, generator=torch.Generator().manual_seed(0))
    halves = half_tiles(Rectified(w, None, x0, y0))
    frame = torch.zeros(1, 1, 320, 320)
    top, left = int(y0) % TILE, int(x0) % TILE
    frame[..., top : top + 150, left : left + 200] = w
    rows, columns = (slice(n // HALF * HALF, (n // HALF + 4) * HALF) for n in (top, left))
    window = torch.zeros_like(frame)
    window[..., rows, columns] = frame[..., rows, columns]
    expected = coefficients(tile_grid(window)).sum((1, 2))
    assert torch.allclose(halves.values[:, :4, :4].sum((1, 2)), expected, atol=1e-4)
    assert (halves.row, halves.column) == (int(y0) // HALF, int(x0) // HALF)
    whole = coefficients(tile_grid(frame)).sum((1, 2))
    assert torch.allclose(halves.values.sum((1, 2)), whole, atol=1e-4)


def test_placed_tiles_leave_a_fraction_of_a_pixel():
    w = torch.randn(1, 1, 100, 80, generator=torch.Generator().manual_seed(0))
    placed = placed_tiles(w, 130.25, -3.5)
    assert (placed.row, placed.column) == (-1, 2) and placed.tiles.shape == (1, 3, 2, TILE, TILE)
    assert (placed.x, placed.y) == (0.25, 0.5)
    assert torch.equal(placed.tiles[0, 0, 0, 60:, 2:], w[0, 0, :4, : TILE - 2])


@pytest.mark.parametrize(("x", "y"), [(1.0, 0.0), (0.0, -3.25), (10.7, 41.3)])
def test_shifted_moves_the_content(x, y):
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(364, generator=generator, dtype=torch.float64)
    points = torch.rand(50, 2, generator=generator, dtype=torch.float64) * TILE

    def values(tile: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """The periodic function that coefficients stand for, at points (P, 2) of (x, y)."""
        phase = points @ FREQUENCIES.double().T * (2 * torch.pi / TILE)
        return torch.cat([phase.cos(), phase.sin()], 1) @ tile

    moved = values(tile, points - torch.tensor([x, y], dtype=torch.float64))
    assert torch.allclose(values(shifted(tile, x, y), points), moved, atol=1e-10)
