"""Folding: averages of tiles, and their coefficients in the band."""

import pytest
import torch

from onrw_core.extractors.carriers import FREQUENCIES, RADIUS_SQUARED, TILE, band_basis
from onrw_core.extractors.folding import HOST_SLOPE, coefficients, fold, tile_grid


@pytest.mark.parametrize("offset", [(0, 0), (5, 70)])
@pytest.mark.parametrize("weighted", [False, True])
def test_fold_averages_what_lies_on_one_position(offset, weighted):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 1, 150, 100, generator=generator)
    weight = (torch.rand(1, 1, 150, 100, generator=generator) > 0.5).float() if weighted else None
    found = fold(w if weight is None else w * weight, weight, offset)
    sums, counts = torch.zeros(2, TILE, TILE), torch.zeros(TILE, TILE)
    for y in range(150):
        for x in range(100):
            place = (y + offset[1]) % TILE, (x + offset[0]) % TILE
            one = 1.0 if weight is None else float(weight[0, 0, y, x])
            sums[:, place[0], place[1]] += w[:, 0, y, x] * one
            counts[place] += one
    assert torch.allclose(found, sums / counts.clamp(min=0.5), atol=1e-5)


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
