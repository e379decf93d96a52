"""The band, its basis, and patterns from a stream of bytes."""

import math

import numpy as np
import pytest
import torch

from onrw_core.extractors.keyed.band import DIMENSIONS, FREQUENCIES, TILE, band_basis, orthonormal_rows
from onrw_core.payload.keys import Key

KEY = Key(bytes(range(32)))


def test_the_band_is_a_half_plane_between_two_radii():
    found = {tuple(k) for k in FREQUENCIES.tolist()}
    wanted = {(x, y) for x in range(-20, 21) for y in range(-20, 21) if 4 <= x * x + y * y <= 118}
    assert len(found) == len(FREQUENCIES) == 182 and DIMENSIONS == 364
    assert found | {(-x, -y) for x, y in found} == wanted
    assert not found & {(-x, -y) for x, y in found}
    rows = FREQUENCIES.tolist()
    assert rows == sorted(rows, key=lambda k: (k[1], k[0]))


@pytest.mark.parametrize("tile", [TILE, 40])
def test_the_basis_is_orthonormal_and_made_of_the_bands_waves(tile):
    basis = band_basis(tile)
    assert basis.shape == (tile * tile, DIMENSIONS)
    assert torch.allclose(basis.T @ basis, torch.eye(DIMENSIONS, dtype=torch.float64), atol=1e-10)
    (kx, ky), row, column = FREQUENCIES[100].tolist(), 5, 17
    phase = 2 * math.pi * (kx * (column + 0.5) + ky * (row + 0.5)) / tile
    cosine, sine = basis[row * tile + column, 100], basis[row * tile + column, 182 + 100]
    assert cosine.item() == pytest.approx(2**0.5 / tile * math.cos(phase))
    assert sine.item() == pytest.approx(2**0.5 / tile * math.sin(phase))


def test_rows_are_orthonormal_in_the_order_of_the_stream():
    stream = KEY.stream("any", 40 * 364 * 8)
    patterns = orthonormal_rows(stream, 40)
    assert patterns.shape == (40, DIMENSIONS) and patterns.dtype == torch.float64
    assert torch.allclose(patterns @ patterns.T, torch.eye(40, dtype=torch.float64), atol=1e-12)
    octets = np.frombuffer(stream, np.uint8)
    rows = torch.from_numpy(octets.reshape(40, 364, 8).sum(2, dtype=np.int64) - 1020).double()
    assert abs(rows.mean().item()) < 5  # eight bytes less their mean
    # Gram-Schmidt: row i is in the span of the first i patterns, with a positive part along its own.
    parts = rows @ patterns.T
    assert torch.allclose(parts.triu(1), torch.zeros(40, 40, dtype=torch.float64), atol=1e-6)
    assert (parts.diagonal() > 0).all()
