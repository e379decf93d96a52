"""Folding: averages of tiles, and their coefficients in the band."""

import pytest
import torch

from onrw_core.extractors.carriers import FREQUENCIES, RADIUS_SQUARED, TILE, band_basis
from onrw_core.extractors.folding import HALF, HOST_SLOPE, coefficients, fold, half_tiles, tile_grid


@pytest.mark.parametrize("weighted", [False, True])
def test_fold_adds_up_what_lies_on_one_position(weighted):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 1, 150, 100, generator=generator)
    weight = (torch.rand(1, 1, 150, 100, generator=generator) > 0.5).float() if weighted else torch.ones(1, 1, 150, 100)
    found = fold(w * weight, weight if weighted else None)
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
    assert torch.allclose(grid.mean((1, 2)), coefficients(fold(w)), atol=1e-5)


def test_half_tiles_add_up_to_any_window():
    w = torch.randn(1, 1, 150, 200, generator=torch.Generator().manual_seed(0))
    halves = half_tiles(w)
    assert halves.shape == (1, 5, 7, 364)
    window = torch.zeros_like(w)
    window[..., HALF : 4 * HALF, 2 * HALF : 5 * HALF] = w[..., HALF : 4 * HALF, 2 * HALF : 5 * HALF]
    expected = coefficients(tile_grid(window)).sum((1, 2))
    assert torch.allclose(halves[:, 1:4, 2:5].sum((1, 2)), expected, atol=1e-4)
